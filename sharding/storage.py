"""Raw tensor bytes of a checkpoint in any file system: one file per rank, checksummed while it is written.

This is the storage layer of torch's distributed checkpoint (DCP); nothing is pickled, so a checkpoint from
anywhere can be read safely. `index.json` locates each piece of each tensor.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath

_WRITE_BYTES = 64 << 20
_GAP_BYTES = 1 << 20  # reading across a smaller gap is cheaper than another request
_READ_BYTES = 256 << 20

Index = dict[str, Any]  # {tensor: {dtype, shape, pieces: [{offsets, shape, file, start}]}}


@dataclass(frozen=True)
class WrittenFile:
    """A file of a checkpoint with its size and checksum."""

    path: str
    size: int
    checksum: str  # xxh3:<32 hex>


@dataclass(frozen=True)
class Piece:
    """The location of one piece of a tensor: a file, and the byte at which the piece starts."""

    file: WrittenFile
    start: int


def checksum(digest: "xxhash.xxh3_128") -> str:
    """Format a digest as in manifests, `xxh3:<32 hex>`."""
    return f"xxh3:{digest.hexdigest()}"


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


class CheckpointWriter(StorageWriter):
    """Writer of one rank's pieces; `commit` is called on rank 0 when the files of all ranks are durable."""

    def __init__(self, folder: StoragePath, prefix: str, check: Callable[[], None], commit: Callable[[list[WrittenFile]], None]):
        super().__init__()
        self.folder, self.prefix, self.check, self.commit = folder, prefix, check, commit
        self.rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a writer serves one save and keeps no state between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = int(kwargs.get("rank") or 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's pieces one after another into one file."""
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._write(plan.items, planner) if plan.items else [])
        return future

    def _write(self, items: Sequence[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        self.check()
        name = f"{self.prefix}-rank-{self.rank:05d}.bin"
        digest, position, starts = xxhash.xxh3_128(), 0, []
        with self.folder.create(name) as stream:
            for item in items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, torch.Tensor), "a checkpoint holds tensors only"
                data = raw_bytes(tensor)
                starts.append((item.index, position, len(data)))
                for offset in range(0, len(data), _WRITE_BYTES):
                    part = data[offset : offset + _WRITE_BYTES]
                    digest.update(part)
                    stream.write(part)
                position += len(data)
        file = WrittenFile(name, position, checksum(digest))
        return [WriteResult(index, size, Piece(file, start)) for index, start, size in starts]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index and commit. Called on rank 0 alone, after every rank has written."""
        pieces = {result.index: result.storage_data for rank in results for result in rank}
        files = sorted({piece.file for piece in pieces.values()}, key=lambda file: file.path)
        index = _index_of(metadata, pieces)
        data = json.dumps(index, separators=(",", ":")).encode()
        name = f"{self.prefix}-index.json"
        self.folder.write(name, data)
        self.commit([*files, WrittenFile(name, len(data), checksum(xxhash.xxh3_128(data)))])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _index_of(metadata: Metadata, pieces_by_index: Mapping[MetadataIndex, Piece]) -> Index:
    index: Index = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), f"{name}: a checkpoint holds tensors only"
        pieces = []
        for chunk in entry.chunks:
            piece = pieces_by_index.get(MetadataIndex(name, chunk.offsets)) or pieces_by_index[MetadataIndex(name)]
            pieces.append(
                {"offsets": list(chunk.offsets), "shape": list(chunk.sizes), "file": piece.file.path, "start": piece.start}
            )
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        index[name] = {"dtype": dtype, "shape": list(entry.size), "pieces": pieces}
    return index


def parse_index(data: bytes, where: str) -> Index:
    """Parse the index of a verified checkpoint. Raises CheckpointError."""
    try:
        index: Index = json.loads(data)
        for entry in index.values():
            assert isinstance(getattr(torch, entry["dtype"]), torch.dtype)
        return index
    except (ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{where}: not an index of tensors ({error!r}); use an older checkpoint") from None


class CheckpointReader(StorageReader):
    """Reader of the slices that this rank needs, at any number of ranks that wrote them."""

    def __init__(self, folder: StoragePath, index: Index) -> None:
        super().__init__()
        self.folder, self.index = folder, index
        self.pieces = {
            (name, tuple(piece["offsets"])): (piece, getattr(torch, entry["dtype"]))
            for name, entry in index.items()
            for piece in entry["pieces"]
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader keeps no state between loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=getattr(torch, entry["dtype"])),
                    size=torch.Size(entry["shape"]),
                    chunks=[
                        ChunkStorageMetadata(offsets=torch.Size(p["offsets"]), sizes=torch.Size(p["shape"]))
                        for p in entry["pieces"]
                    ],
                )
                for name, entry in self.index.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the constructor has all that is needed."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted = [self._range(item) for item in plan.items]
        for file in sorted({want.file for want in wanted}):
            for stretch in _stretches([want for want in wanted if want.file == file]):
                data = self.folder.read(file, stretch[0].start, max(want.stop for want in stretch))
                for want in stretch:
                    offset = want.start - stretch[0].start
                    target = planner.resolve_tensor(want.item).detach()
                    target.copy_(want.tensor(data[offset : offset + want.stop - want.start]))
                    planner.commit_tensor(want.item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _range(self, item: ReadItem) -> "_Want":
        at = item.storage_index
        piece, dtype = self.pieces[at.fqn, tuple(at.offset or ())]
        shape = piece["shape"]
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        first, rows = (item.storage_offsets[0], item.lengths[0]) if shape else (0, 1)
        start = piece["start"] + first * row_bytes
        return _Want(item, piece["file"], start, start + rows * row_bytes, dtype, (rows, *shape[1:]) if shape else ())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


@dataclass(frozen=True)
class _Want:
    """The bytes of a file that hold the rows of a piece which an item requests."""

    item: ReadItem
    file: str
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def tensor(self, data: bytes) -> torch.Tensor:
        """Return the part of these rows that the item requests."""
        rows = to_tensor(data, self.dtype, self.shape)
        for dim in range(1, rows.dim()):
            rows = rows.narrow(dim, self.item.storage_offsets[dim], self.item.lengths[dim])
        return rows


def to_tensor(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return bytes as a tensor that owns them."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(dtype).reshape(tuple(shape))


def _stretches(wants: list[_Want]) -> Iterator[list[_Want]]:
    """Group requests that are neighbours in a file, to read each group at once."""
    stretch: list[_Want] = []
    for want in sorted(wants, key=lambda want: want.start):
        if stretch and (want.start - stretch[-1].stop > _GAP_BYTES or want.stop - stretch[0].start > _READ_BYTES):
            yield stretch
            stretch = []
        stretch.append(want)
    if stretch:
        yield stretch
