"""Muon's update of sharded matrices (Jordan et al. 2024; arXiv 2502.16982), its arithmetic divided over the ranks.

A rank has a part of each matrix, and orthogonalizing needs all of it. In each round every rank of the mesh gathers one matrix,
orthogonalizes it, and returns the parts to the ranks they belong to. Matrices travel in bf16, the format of Newton-Schulz.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.sharding.placement import Placement, coordinates, local_shape, pieces, placement_of

MOMENTUM = 0.95
STATE = "momentum_buffer"  # torch's name
_UPDATE_RMS = 0.2  # of AdamW's update, so that both have one learning rate


def adjusted_scale(shape: Sequence[int]) -> float:
    """Return the factor of the learning rate that gives an orthogonal matrix the size of AdamW's update."""
    return _UPDATE_RMS * math.sqrt(max(shape))


def orthogonalize(update_AB: torch.Tensor) -> torch.Tensor:
    """Return the nearest orthogonal matrix, roughly, by the Newton-Schulz iteration of torch's Muon."""
    wide = update_AB if update_AB.shape[0] <= update_AB.shape[1] else update_AB.T  # torch scales the steps of tall ones
    result = nn.Parameter(torch.zeros_like(wide))
    result.grad = wide
    # from zero, by minus the orthogonal matrix
    torch.optim.Muon([result], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()  # type: ignore[no-untyped-call]
    orthogonal = -result.detach()
    return orthogonal if wide is update_AB else orthogonal.T


@torch.no_grad()
def momentum_update(gradient: torch.Tensor, buffer: torch.Tensor, applied: torch.Tensor) -> torch.Tensor:
    """Add a gradient to the momentum, and return Nesterov's update in bf16; a buffer in bf16 is rounded after the update.

    Where `applied` is 0 instead of 1, the momentum is unchanged and the update finite, whatever the gradient.
    """
    momentum = buffer.float()
    gradient.masked_fill_(applied == 0, 0.0)
    momentum.lerp_(gradient, (applied * (1 - MOMENTUM)).to(momentum.dtype))
    if momentum is not buffer:
        buffer.copy_(momentum)
    return gradient.lerp(momentum, MOMENTUM).bfloat16()


class _Parts(NamedTuple):
    """The parts of a matrix that the ranks of a mesh hold."""

    whole: tuple[int, ...]  # shape
    mesh: tuple[int, ...]
    placement: Placement

    def shape(self, rank: int) -> tuple[int, ...]:
        return local_shape(self.whole, self.mesh, self.placement, rank)

    def sends(self, rank: int, owner: int) -> bool:
        """Return True for the ranks that together hold the matrix once: those nearest to the owner."""
        divided = {split.axis for split in self.placement}
        pairs = zip(coordinates(self.mesh, rank), coordinates(self.mesh, owner), strict=True)
        return all(first == second for axis, (first, second) in enumerate(pairs) if axis not in divided)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrix, given flat parts by rank; those of ranks that sent nothing are empty."""
        result = parts[0].new_empty(self.whole)
        for rank, part in enumerate(parts):
            for box in pieces(self.whole, self.mesh, self.placement, rank) if part.numel() else ():
                result[box.window] = part.view(self.shape(rank))[box.inside]
        return result

    def part(self, matrix: torch.Tensor, rank: int) -> torch.Tensor:
        """Return the part of a rank."""
        result = matrix.new_empty(self.shape(rank))
        for box in pieces(self.whole, self.mesh, self.placement, rank):
            result[box.inside] = matrix[box.window]
        return result


class MatrixExchange:
    """Orthogonalizes sharded matrices; all ranks call it with the same matrices."""

    def __init__(self, matrices: Sequence[nn.Parameter]) -> None:
        # the matrices of a round take about the same time
        self.matrices = sorted(matrices, key=lambda matrix: min(matrix.shape) * matrix.numel(), reverse=True)
        # those that tensor parallelism does not divide have a part of the mesh only
        mesh = max((matrix.device_mesh for matrix in self.matrices if isinstance(matrix, DTensor)), key=lambda mesh: mesh.ndim)
        self._axes, self._mesh = mesh.mesh_dim_names or (), tuple(mesh.shape)
        self._ranks, self._rank = mesh.size(), dist.get_rank()
        assert self._ranks == dist.get_world_size(), "the mesh has all ranks"
        assert tuple(mesh.get_coordinate() or ()) == tuple(coordinates(self._mesh, self._rank)), "the mesh has them row by row"

    def rounds(self) -> Iterator[Sequence[nn.Parameter]]:
        for start in range(0, len(self.matrices), self._ranks):
            yield self.matrices[start : start + self._ranks]

    def orthogonal(self, matrices: Sequence[nn.Parameter], updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return this rank's parts of the orthogonalized updates of a round, given its parts of the updates.

        The n-th rank gets the n-th matrix from the ranks that together hold it once, and returns its part to every rank.
        """
        parts = [_Parts(tuple(matrix.shape), self._mesh, placement_of(matrix, self._axes)) for matrix in matrices]
        sent = [
            update if part.sends(self._rank, owner) else update.new_empty(0)
            for owner, (part, update) in enumerate(zip(parts, updates, strict=True))
        ]
        mine, ranks = parts[self._rank] if self._rank < len(parts) else None, range(self._ranks)
        sizes = [math.prod(mine.shape(rank)) if mine and mine.sends(rank, self._rank) else 0 for rank in ranks]
        received = self._exchange(sent, sizes)
        whole = orthogonalize(mine.join(received)) if mine else None
        returned = [mine.part(whole, rank) for rank in ranks] if mine and whole is not None else []
        results = self._exchange(returned, [update.numel() for update in updates])
        return [result.view_as(update) for result, update in zip(results, updates, strict=False)]

    def _exchange(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        """Send the n-th tensor to the n-th rank, and return what each rank has sent; ranks beyond the lists have no part."""
        sent = [tensor.numel() for tensor in tensors] + [0] * (self._ranks - len(tensors))
        received = [*sizes, *[0] * (self._ranks - len(sizes))]
        nothing = torch.empty(0, dtype=torch.bfloat16, device=self.matrices[0].device)
        flat = torch.cat([nothing, *(tensor.flatten() for tensor in tensors)])
        result = flat.new_empty(sum(received))
        dist.all_to_all_single(result, flat, received, sent)
        return torch.split(result, received)
