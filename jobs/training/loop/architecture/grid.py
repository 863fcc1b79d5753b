"""Quantization grids: integers times a scale of the row, or of a group of it. Plain torch, the same everywhere.

The scale is the largest magnitude of the group over the largest integer (127 or 7), with 16 significant bits: every
product is then exact in fp32, and weights on their grid give the same scale, and so the same grid, again.

In quantization-aware training every pass computes with rounded weights, and gradients pass straight through the rounding.

O outputs, I inputs of a matrix, G groups of a row.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.model_keys import GridConfig

LARGEST = {"int8": 127, "int4": 7}
_DROPPED_BITS = 8  # of the 24 significant bits of fp32


def scales(weight_OI: torch.Tensor, grid: GridConfig) -> torch.Tensor:
    """Return the scale of each group of each row, [O, G] in fp32; for int8 a row is one group. 1 if all weights are 0."""
    largest_OG = _group(weight_OI.detach().float(), grid).abs().amax(-1)
    scale_OG = largest_OG.where(largest_OG > 0, LARGEST[grid.type]) / LARGEST[grid.type]
    half, mask = 1 << (_DROPPED_BITS - 1), ~((1 << _DROPPED_BITS) - 1)
    return ((scale_OG.view(torch.int32) + half) & mask).view(torch.float32)


def on_grid(weight_OI: torch.Tensor, grid: GridConfig) -> torch.Tensor:
    """Round weights to the nearest grid points, in their own format; idempotent."""
    scale_OG1 = scales(weight_OI, grid)[..., None]
    rounded = (_group(weight_OI.float(), grid) / scale_OG1).round_().clamp_(-LARGEST[grid.type], LARGEST[grid.type])
    return rounded.mul_(scale_OG1).reshape(weight_OI.shape).to(weight_OI.dtype)


def _group(weight_OI: torch.Tensor, grid: GridConfig) -> torch.Tensor:
    return weight_OI.reshape(weight_OI.shape[0], -1, grid.group_size if grid.type == "int4" else weight_OI.shape[1])


def layer_matrices(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the matrices of a decoder's layers by name, without embeddings and head. Raises ConfigError if there are none."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    matrices = (
        [(name, part) for name, part in layers.named_modules() if isinstance(part, nn.Linear)] if layers is not None else []
    )
    if not matrices:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ConfigError(
            f"the architecture {kind!r} has no layers with matrices to quantize; only Llama-like models are supported"
        )
    yield from matrices


def check_grid(model: Any, grid: GridConfig) -> None:
    """Raise ConfigError unless the grid's groups divide the rows of all matrices of the layers."""
    odd = [
        f"{name} ({linear.in_features} inputs)" for name, linear in layer_matrices(model) if linear.in_features % grid.group_size
    ]
    if grid.type == "int4" and odd:
        raise ConfigError(f"group_size: {grid.group_size} does not divide {odd[0]}; choose a divisor of all matrices' inputs")


@torch.no_grad()
def put_on_grid(model: Any, grid: GridConfig) -> Any:
    """Round the matrices of a model's layers, in place."""
    for _, linear in layer_matrices(model):
        linear.weight.copy_(on_grid(linear.weight, grid))
    return model


class _StraightThrough(torch.autograd.Function):
    """Rounding with the gradient of the identity (Bengio and others, 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight_OI: torch.Tensor, grid: GridConfig) -> torch.Tensor:
        return on_grid(weight_OI, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class RoundedLinear(nn.Linear):
    """A linear layer that computes with rounded weights; the trained and checkpointed weights are not rounded."""

    grid: GridConfig

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        rounded_OI: torch.Tensor = _StraightThrough.apply(self.weight, self.grid)  # type: ignore[no-untyped-call]
        return F.linear(input, rounded_OI, self.bias)


def train_on_grid(model: Any, grid: GridConfig) -> None:
    """Make a model compute with rounded layer matrices, sharded or not. Raises ConfigError if it cannot."""
    check_grid(model, grid)
    for _, linear in layer_matrices(model):
        linear.__class__ = RoundedLinear  # keeps the parameter object, which is sharded and checkpointed
        linear.grid = grid  # type: ignore[assignment]
