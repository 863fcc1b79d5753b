"""Read any part of a checkpoint's tensors: which bytes of which ranks' files it needs, read in long verified stretches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.file_layout import FileLayout, StoredTensor
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest, file_name
from ropewalk.sharding.checkpoints.rank_file import RankFileReader
from ropewalk.sharding.placement import Box, Placement, Shape, holds_first_copy, local_shape, pieces

_GAP_BYTES = 1 << 20  # reading across a smaller gap is cheaper than another request
_READ_BYTES = 32 << 20

Window = tuple[slice, ...]


class Part(NamedTuple):
    """Rows of a local tensor in a rank's file, and the window of a tensor in memory that some columns of them belong to."""

    rank: int
    start: int  # first byte, in the data of the file
    end: int
    rows: Shape
    columns: Window
    name: str
    window: Window


class _Crossing(NamedTuple):
    """A part of tensors of one shape, before the place of a tensor in the file is known."""

    rank: int
    local: Shape  # of the saved local tensor
    saved: Window
    window: Window


class ReadPlan:
    """Finds the parts of tensors that cross given boxes. Tensors of one shape and placement share the search."""

    def __init__(self, layout: FileLayout) -> None:
        self.layout = layout
        self._saved: dict[tuple[Shape, Placement], list[tuple[int, Shape, Box]]] = {}
        self._crossings: dict[tuple[Shape, Placement, tuple[Box, ...]], list[_Crossing]] = {}

    def parts(self, name: str, wanted: Sequence[Box]) -> Iterator[Part]:
        """Yield the parts that fill the boxes of a tensor."""
        tensor = self.layout.tensors[name]
        key = tensor.shape, tensor.placement, tuple(wanted)
        if key not in self._crossings:
            self._crossings[key] = list(self._find(tensor, wanted))
        starts = self.layout.starts(name)
        for crossing in self._crossings[key]:
            yield from _by_rows(crossing, name, int(starts[crossing.rank]), tensor.torch_dtype.itemsize)

    def _find(self, tensor: StoredTensor, wanted: Sequence[Box]) -> Iterator[_Crossing]:
        for rank, local, box in self._saved_boxes(tensor):
            for target in wanted:
                spans = [
                    (max(s, t), min(s + n, t + m))
                    for s, n, t, m in zip(box.start, box.shape, target.start, target.shape, strict=True)
                ]
                if all(low < high for low, high in spans):
                    yield _Crossing(rank, local, _window(spans, box), _window(spans, target))

    def _saved_boxes(self, tensor: StoredTensor) -> list[tuple[int, Shape, Box]]:
        key, mesh = (tensor.shape, tensor.placement), self.layout.mesh
        if key not in self._saved:
            ranks = [rank for rank in range(self.layout.world_size) if holds_first_copy(mesh, tensor.placement, rank)]
            self._saved[key] = [
                (rank, local_shape(tensor.shape, mesh, tensor.placement, rank), box)
                for rank in ranks
                for box in pieces(tensor.shape, mesh, tensor.placement, rank)
            ]
        return self._saved[key]


def _window(spans: list[tuple[int, int]], box: Box) -> Window:
    """Return where spans of a tensor lie in the local tensor of a box."""
    shifts = [local - start for start, local in zip(box.start, box.local, strict=True)]
    return tuple(slice(low + shift, high + shift) for (low, high), shift in zip(spans, shifts, strict=True))


def _by_rows(crossing: _Crossing, name: str, start: int, itemsize: int) -> Iterator[Part]:
    """Yield a crossing in parts of a size that can be read at once."""
    rank, local, saved, window = crossing
    if not local:
        yield Part(rank, start, start + itemsize, (), (), name, ())
        return
    row_bytes = int(np.prod(local[1:])) * itemsize
    step = max(1, _READ_BYTES // row_bytes)
    for row in range(saved[0].start, saved[0].stop, step):
        end = min(row + step, saved[0].stop)
        shift = window[0].start - saved[0].start
        rows = slice(row + shift, end + shift)
        first = start + row * row_bytes
        yield Part(rank, first, first + (end - row) * row_bytes, (end - row, *local[1:]), saved[1:], name, (rows, *window[1:]))


class PartReader:
    """Reads parts of the tensors of one checkpoint; the tables of the files in use stay in memory."""

    def __init__(self, folder: StoragePath, manifest: CheckpointManifest, layout: FileLayout) -> None:
        self.folder, self.layout = folder, layout
        self._records = dict(zip(layout.writers, manifest.files, strict=True))
        self._files: dict[int, RankFileReader] = {}

    def read(self, parts: Iterable[Part], targets: Mapping[str, torch.Tensor]) -> None:
        """Copy parts into the tensors of their names. Raises CheckpointError at the first damaged block, with its tensor."""
        by_place = sorted(parts, key=lambda part: (part.rank, part.start))
        for rank, of_file in groupby(by_place, key=lambda part: part.rank):
            if rank not in self._files:
                self._files[rank] = RankFileReader(self.folder, self._records[rank], self.layout, rank)
            for stretch in _stretches(of_file):
                self._read_stretch(self._files[rank], stretch, targets)

    def _read_stretch(self, file: RankFileReader, stretch: list[Part], targets: Mapping[str, torch.Tensor]) -> None:
        first = stretch[0].start
        data = file.read(first, max(part.end for part in stretch))
        for part in stretch:
            raw = torch.from_numpy(data[part.start - first : part.end - first])
            rows = raw.view(self.layout.tensors[part.name].torch_dtype).reshape(part.rows)
            targets[part.name][part.window].copy_(rows[(slice(None), *part.columns)] if part.rows else rows)


def _stretches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Group parts of a file that are neighbours, to read each group at once."""
    stretch: list[Part] = []
    for part in parts:
        if stretch and (part.start - stretch[-1].end > _GAP_BYTES or part.end - stretch[0].start > _READ_BYTES):
            yield stretch
            stretch = []
        stretch.append(part)
    if stretch:
        yield stretch


def problems(folder: StoragePath, manifest: CheckpointManifest, share: slice = slice(None), *, verify: bool = False) -> list[str]:
    """Return the problems of a checkpoint's files, or a share of them: missing, wrong size, damaged header or table.

    With `verify` all their blocks are read too.
    """
    layout = manifest.tensors.layout()
    expected = [file_name(manifest, rank) for rank in layout.writers]
    if [file.path for file in manifest.files] != expected:
        return [f"the manifest lists {len(manifest.files)} files, which are not the {len(expected)} that its tensors need"]

    def examine(number: int) -> list[str]:
        try:
            reader = RankFileReader(folder, manifest.files[number], layout, layout.writers[number])
            return list(reader.verify()) if verify else []
        except CheckpointError as error:
            return [str(error)]

    numbers = range(len(expected))[share]
    return [problem for of_file in folder.each(examine, numbers) for problem in of_file]
