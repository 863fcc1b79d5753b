"""The tensors of one checkpoint, read by name, whole or a range of rows at a time, in one process."""

import math
from types import EllipsisType

import torch

from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.manifest import CheckpointManifest
from ropewalk.sharding.storage import parse_index, to_tensor


class StoredTensors:
    """Names, shapes and values of the tensors of a checkpoint, assembled from the pieces that the ranks wrote."""

    def __init__(self, folder: StoragePath, manifest: CheckpointManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._index = parse_index(folder.read(manifest.index), folder.url)

    @property
    def names(self) -> list[str]:
        return list(self._index)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._index[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._index[name]["dtype"])
        return dtype

    def read(self, name: str, first_row: int = 0, end_row: int | None = None) -> torch.Tensor:
        """Return rows [first_row, end_row) of a tensor's dim 0 on the CPU; by default all, and a scalar whole.

        Only the bytes of these rows are read. Raises CheckpointError if they are damaged.
        """
        shape, dtype = self.shape(name), self.dtype(name)
        if shape:
            end_row = shape[0] if end_row is None else end_row
            assert 0 <= first_row <= end_row <= shape[0], f"{name} has {shape[0]} rows, not {first_row} to {end_row}"
        result = torch.empty((end_row - first_row, *shape[1:]) if shape and end_row is not None else (), dtype=dtype)
        for piece in self._index[name]["pieces"]:
            offsets, piece_shape = piece["offsets"], piece["shape"]
            at: tuple[slice | EllipsisType, ...]
            if not shape:
                first, end, at = 0, 1, (...,)
            else:
                assert end_row is not None
                first, end = max(first_row, offsets[0]), min(end_row, offsets[0] + piece_shape[0])
                if first >= end:
                    continue
                columns = (slice(o, o + n) for o, n in zip(offsets[1:], piece_shape[1:], strict=True))
                at = (slice(first - first_row, end - first_row), *columns)
                first, end = first - offsets[0], end - offsets[0]
            row_bytes = math.prod(piece_shape[1:]) * dtype.itemsize
            data = self.folder.read(piece["file"], piece["start"] + first * row_bytes, piece["start"] + end * row_bytes)
            result[at] = to_tensor(data, dtype, (end - first, *piece_shape[1:]) if shape else ())
        return result

    def read_all(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the whole tensors whose names start with `prefix`, by the rest of their name."""
        return {name.removeprefix(prefix): self.read(name) for name in self.names if name.startswith(prefix)}
