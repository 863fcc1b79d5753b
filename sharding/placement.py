"""Places of the pieces of a divided tensor, computed from its shape, the mesh and its placement; plain arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Placement as TorchPlacement
from torch.distributed.tensor.placement_types import _StridedShard

Shape = tuple[int, ...]
_Interval = tuple[int, int]  # first index, length


class Split(NamedTuple):
    """Division of what a rank holds of one dim along one axis of the mesh.

    With several `blocks` the dim is cut into them first, and each is divided: a packed matrix, such as gate and up in one.
    """

    axis: int
    dim: int
    blocks: int


class Box(NamedTuple):
    """A block of a tensor, and where it starts in the local tensor that holds it."""

    start: Shape
    shape: Shape
    local: Shape

    @property
    def window(self) -> tuple[slice, ...]:
        """The indices of the block in the tensor."""
        return tuple(slice(first, first + size) for first, size in zip(self.start, self.shape, strict=True))

    @property
    def inside(self) -> tuple[slice, ...]:
        """The indices of the block in the local tensor."""
        return tuple(slice(first, first + size) for first, size in zip(self.local, self.shape, strict=True))


Placement = tuple[Split, ...]  # in the order in which the splits are applied; the tensor is replicated along other axes


def placement_of(tensor: torch.Tensor, axes: Sequence[str]) -> Placement:
    """Return the placement of a tensor on the mesh with these axes; a plain tensor is replicated on all of them."""
    if not isinstance(tensor, DTensor):
        return ()
    now, later = [], []
    names = tensor.device_mesh.mesh_dim_names or ()
    for number, (name, placement) in enumerate(zip(names, tensor.placements, strict=True)):
        if placement.is_replicate():
            continue
        strided = isinstance(placement, _StridedShard)
        assert strided or placement.is_shard(), f"{placement}: partial sums cannot be saved"
        dim: int = placement.dim % tensor.ndim  # type: ignore[attr-defined]
        right = tensor.placements[number + 1 :]
        if strided and any(_divides(other, dim, tensor.ndim) for other in right):
            # FSDP has divided what tensor parallelism left on the rank, in whatever way that was done
            later.append(Split(axes.index(name), dim, 1))
        else:
            now.append(Split(axes.index(name), dim, int(placement.split_factor) if strided else 1))  # type: ignore[attr-defined]
    return (*now, *reversed(later))


def _divides(placement: TorchPlacement, dim: int, ndim: int) -> bool:
    strided = isinstance(placement, _StridedShard) and placement.dim % ndim == dim
    return strided or placement.is_shard(dim) or placement.is_shard(dim - ndim)


def coordinates(mesh: Shape, rank: int) -> Shape:
    """Return the indices of a rank along the axes of the mesh, whose ranks are numbered row by row."""
    indices = []
    for size in reversed(mesh):
        rank, index = divmod(rank, size)
        indices.append(index)
    return tuple(reversed(indices))


def holds_first_copy(mesh: Shape, placement: Placement, rank: int) -> bool:
    """Return True on one of the ranks that hold the same piece: the one that saves it."""
    divided = {split.axis for split in placement}
    return all(index == 0 for axis, index in enumerate(coordinates(mesh, rank)) if axis not in divided)


def pieces(shape: Shape, mesh: Shape, placement: Placement, rank: int) -> list[Box]:
    """Return the blocks of a tensor that make up a rank's local tensor; none if that is empty."""
    intervals: list[list[_Interval]] = [[(0, size)] if size else [] for size in shape]
    index = coordinates(mesh, rank)
    for split in placement:
        intervals[split.dim] = _divide(intervals[split.dim], mesh[split.axis], index[split.axis], split.blocks)
    boxes = [Box((), (), ())]
    for parts in intervals:
        local, ends = 0, []
        for first, length in parts:
            ends.append((first, length, local))
            local += length
        boxes = [Box((*b.start, f), (*b.shape, n), (*b.local, at)) for b in boxes for f, n, at in ends]
    return boxes


def local_pieces(tensor: torch.Tensor) -> list[Box]:
    """Return the blocks of a tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return pieces(tuple(tensor.shape), (), (), 0)
    mesh = tensor.device_mesh
    rank = 0
    for size, index in zip(mesh.shape, mesh.get_coordinate() or (), strict=True):
        rank = rank * size + index
    placement = placement_of(tensor, mesh.mesh_dim_names or ())
    return pieces(tuple(tensor.shape), tuple(mesh.shape), placement, rank)


def local_shape(shape: Shape, mesh: Shape, placement: Placement, rank: int) -> Shape:
    """Return the shape of a rank's local tensor."""
    sizes, index = list(shape), coordinates(mesh, rank)
    for split in placement:
        parts = _divide([(0, sizes[split.dim])], mesh[split.axis], index[split.axis], split.blocks)
        sizes[split.dim] = sum(length for _, length in parts)
    return tuple(sizes)


def _divide(intervals: list[_Interval], parts: int, index: int, blocks: int) -> list[_Interval]:
    """Return part `index` of each block of the intervals, which follow one another; parts are equal but the last, as torch's."""
    total = sum(length for _, length in intervals)
    result: list[_Interval] = []
    for block in range(blocks):
        first, end = _chunk(total, blocks, block)
        start, stop = _chunk(end - first, parts, index)
        for begin, length in _cut(intervals, first + start, first + stop):
            if result and sum(result[-1]) == begin:
                result[-1] = (result[-1][0], result[-1][1] + length)
            else:
                result.append((begin, length))
    return result


def _chunk(size: int, parts: int, index: int) -> _Interval:
    """Return first and end of a part, as torch.chunk makes them."""
    most = -(-size // parts)
    return min(most * index, size), min(most * (index + 1), size)


def _cut(intervals: list[_Interval], first: int, end: int) -> list[_Interval]:
    """Return the intervals between two positions of their sequence."""
    result, position = [], 0
    for start, length in intervals:
        low, high = max(first, position), min(end, position + length)
        if low < high:
            result.append((start + low - position, high - low))
        position += length
    return result
