"""Muon's update of sharded matrices (Jordan et al. 2024; arXiv 2502.16982), its arithmetic divided over the ranks.

A rank has some rows of each matrix, and orthogonalizing needs all of them. In each round every rank of the mesh gathers one
matrix, orthogonalizes it, and returns the rows to the ranks they belong to. Matrices travel in bf16, the format of Newton-Schulz.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

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


class MatrixExchange:
    """Orthogonalizes sharded matrices; all ranks call it with the same matrices."""

    def __init__(self, matrices: Sequence[nn.Parameter]) -> None:
        # the matrices of a round take about the same time
        self.matrices = sorted(matrices, key=lambda matrix: min(matrix.shape) * matrix.numel(), reverse=True)
        first = self.matrices[0]
        assert isinstance(first, DTensor)
        mesh: DeviceMesh = first.device_mesh
        assert all(placement.is_shard(0) for placement in first.placements[-1:]), "rows are divided over the last axis"
        self._shards, self._shard = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
        self._copies, self._copy = (mesh.size(0), mesh.get_local_rank(0)) if mesh.ndim == 2 else (1, 0)
        self._shard_group = mesh.get_group(mesh.ndim - 1)
        self._copy_group = mesh.get_group(0) if mesh.ndim == 2 else None

    def rounds(self) -> Iterator[Sequence[nn.Parameter]]:
        size = self._shards * self._copies
        for start in range(0, len(self.matrices), size):
            yield self.matrices[start : start + size]

    def orthogonal(self, matrices: Sequence[nn.Parameter], updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return this rank's rows of the orthogonalized updates of a round, given its rows of the updates."""
        parts = [slice(copy * self._shards, (copy + 1) * self._shards) for copy in range(self._copies)]
        here = parts[self._copy]
        sizes = [update.numel() for update in updates]
        rows = [updates[0].new_empty(sum(sizes[part])) for part in parts]
        rows[self._copy] = self._through_owners(matrices[here], updates[here])
        if self._copy_group is not None:
            for copy, row in enumerate(rows):
                dist.broadcast(row, group=self._copy_group, group_src=copy)
        pieces = torch.split(torch.cat(rows), sizes)
        return [piece.view_as(update) for piece, update in zip(pieces, updates, strict=True)]

    def _through_owners(self, matrices: Sequence[nn.Parameter], updates: Sequence[torch.Tensor]) -> torch.Tensor:
        """Send the rows of the n-th matrix to the n-th rank of these shards, and return the orthogonalized rows, flat."""
        sent = [update.numel() for update in updates] + [0] * (self._shards - len(updates))
        shape = matrices[self._shard].shape if self._shard < len(matrices) else torch.Size((0, 0))
        received = [self._rows(shape, shard) * shape[1] for shard in range(self._shards)]
        nothing = torch.empty(0, dtype=torch.bfloat16, device=self.matrices[0].device)  # a copy's share of the last round
        flat = torch.cat([nothing, *(update.flatten() for update in updates)])
        whole = flat.new_empty(shape)
        dist.all_to_all_single(whole.view(-1), flat, received, sent, group=self._shard_group)
        if whole.numel():
            whole = orthogonalize(whole)
        dist.all_to_all_single(flat, whole.flatten(), sent, received, group=self._shard_group)
        return flat

    def _rows(self, shape: torch.Size, shard: int) -> int:
        most = -(-shape[0] // self._shards)
        return max(0, min(most, shape[0] - shard * most))
