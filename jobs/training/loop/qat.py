"""Quantization-aware training: every pass computes with weights on their grid, and gradients go straight through the rounding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ropewalk.jobs.training.loop.config import GridConfig
from ropewalk.jobs.training.loop.grid import check_grid, layer_matrices, on_grid


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (Bengio and others, 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight_OI: torch.Tensor, grid: GridConfig) -> torch.Tensor:
        return on_grid(weight_OI, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class RoundedLinear(nn.Linear):
    """A matrix that is computed as it lies on its grid; what is trained and kept in checkpoints is not rounded."""

    grid: GridConfig

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """The product with the rounded weights."""
        rounded_OI: torch.Tensor = _StraightThrough.apply(self.weight, self.grid)  # type: ignore[no-untyped-call]
        return F.linear(input, rounded_OI, self.bias)


def train_on_grid(model: Any, grid: GridConfig) -> None:
    """Let a model compute with its layers' matrices on the grid, sharded or not. Raises ConfigError where it cannot."""
    check_grid(model, grid)
    for _, linear in layer_matrices(model):
        linear.__class__ = RoundedLinear  # the parameter stays the one that is sharded and saved
        linear.grid = grid  # type: ignore[assignment]
