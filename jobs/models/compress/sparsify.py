"""Set weights of a decoder's matrices to zero, by magnitude or by Wanda's score (2306.11695), layer by layer.

Wanda judges each layer by the outputs of the pruned layers before it. In masks True means that the weight stays.
B sequences, T tokens, O outputs and I inputs of a matrix.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.gguf.ggml import Float32s
from ropewalk.jobs.models.compress.layers import layer_by_layer, linears
from ropewalk.jobs.models.compress.methods import SparsityConfig

GROUP, NONZERO = 4, 2  # 2:4


@torch.no_grad()
def sparsify(model: Any, name: str, options: SparsityConfig, batches: Iterable[torch.Tensor]) -> None:
    """Prune a model in place by `magnitude` or `wanda`; batches are token ids [B, T]. Raises ConfigError for 2:4 of odd sizes."""
    layers = model.model.layers
    _check(layers, options)
    if name == "magnitude":
        for layer in layers:
            for _, linear in linears(layer):
                _apply(linear, linear.weight.abs(), options, by_row=False)
        return
    for _, layer, compute in layer_by_layer(model, batches):
        with _squares(dict(linears(layer))) as squares:
            compute()
        for key, linear in linears(layer):
            _apply(linear, wanda_score(linear.weight, squares.sums[key].sqrt().float()), options, by_row=True)


def zeros(model: Any) -> float:
    """Return the fraction of zeros in the layers' matrices."""
    weights = [linear.weight for _, linear in linears(model.model.layers)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@torch.no_grad()
def importance(model: Any, batches: Iterable[torch.Tensor]) -> Mapping[str, Float32s]:
    """Return the mean square of each input of each matrix, by module name, including the head."""
    with _squares(dict(linears(model))) as squares:
        for input_ids in batches:
            model(input_ids=input_ids, use_cache=False)
    return {
        name: (total / max(1, squares.tokens[name])).float().numpy().astype(np.float32) for name, total in squares.sums.items()
    }


class _Squares:
    """Sums of squares of inputs, float64 [I], and numbers of tokens."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens: dict[str, int] = {}

    def add(self, name: str, inputs: torch.Tensor) -> None:
        flat = inputs.flatten(0, -2)
        self.sums[name] = self.sums.get(name, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.square().sum(0).double()
        self.tokens[name] = self.tokens.get(name, 0) + flat.shape[0]


@contextmanager
def _squares(watched: Mapping[str, nn.Linear]) -> Iterator[_Squares]:
    squares = _Squares()

    def watch(name: str, linear: nn.Linear) -> Any:
        return linear.register_forward_pre_hook(lambda module, inputs: squares.add(name, inputs[0]))

    handles = [watch(name, linear) for name, linear in watched.items()]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _apply(linear: nn.Linear, score_OI: torch.Tensor, options: SparsityConfig, *, by_row: bool) -> None:
    if options.pattern is not None:
        mask = two_of_four(score_OI)
    else:
        mask = (mask_rows if by_row else mask_matrix)(score_OI, options.fraction)
    linear.weight.mul_(mask)


def _check(layers: nn.Module, options: SparsityConfig) -> None:
    odd = [f"layers.{name} ({linear.in_features} inputs)" for name, linear in linears(layers) if linear.in_features % GROUP]
    if options.pattern is not None and odd:
        raise ConfigError(f"2:4: {odd[0]} is not a multiple of {GROUP}; set a sparsity instead of the pattern")


def wanda_score(weight_OI: torch.Tensor, input_norm_I: torch.Tensor) -> torch.Tensor:
    """Return |W| times the L2 norm of each input over the calibration tokens."""
    return weight_OI.abs() * input_norm_I


def mask_matrix(score_OI: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask without the lowest scores of the whole matrix, as in magnitude pruning."""
    count = int(score_OI.numel() * fraction)
    lowest = score_OI.flatten().argsort(stable=True)[:count]
    mask = torch.ones(score_OI.numel(), dtype=torch.bool)
    mask[lowest] = False
    return mask.reshape(score_OI.shape)


def mask_rows(score_OI: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask without the lowest scores of each row, as in Wanda."""
    count = int(score_OI.shape[1] * fraction)
    lowest = score_OI.argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(score_OI, dtype=torch.bool).scatter_(1, lowest, False)


def two_of_four(score_OI: torch.Tensor) -> torch.Tensor:
    """Return a mask with the two highest of every four neighbours of a row; the number of inputs is a multiple of 4."""
    groups = score_OI.reshape(score_OI.shape[0], -1, GROUP)
    lowest = groups.argsort(dim=2, stable=True)[..., : GROUP - NONZERO]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, False).flatten(1)
