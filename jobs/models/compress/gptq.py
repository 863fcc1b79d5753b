"""Quantization with error compensation (GPTQ, 2210.17323), layer by layer.

A matrix is rounded in blocks of columns, following the blocks of its format. The later columns compensate, as well as they can,
the change that a block's rounding causes in the layer's outputs over the calibration text. Within a block the format's own
rounding applies.

O outputs, I inputs of a matrix, B columns of a block.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ropewalk.jobs.inference.gguf.ggml import Bytes, block_size, quantize
from ropewalk.jobs.inference.gguf.gguf_types import GgufType, is_quantized, tensor_type
from ropewalk.jobs.models.compress.layers import layer_by_layer, linears
from ropewalk.jobs.training.loop.architecture.grid import on_grid
from ropewalk.jobs.training.loop.model_keys import GridConfig

DAMPING = 0.01  # fraction of the mean square of all inputs added to the diagonal, as in GPTQ
RoundBlock = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (weights [O, B], importance [B]) → rounded weights
RoundMatrix = Callable[[str, nn.Linear, torch.Tensor], torch.Tensor]  # (name, matrix, second moments [I, I]) → its weights


@torch.no_grad()
def gptq_on_grid(model: Any, grid: GridConfig, batches: Iterable[torch.Tensor]) -> None:
    """Round the matrices of a model's layers to a grid of groups, in place; values on the grid stay unchanged."""

    def round_linear(name: str, linear: nn.Linear, moments_II: torch.Tensor) -> torch.Tensor:
        return round_with_compensation(linear.weight, moments_II, grid.group_size, lambda block, importance: on_grid(block, grid))

    _round_layers(model, batches, round_linear)


@torch.no_grad()
def gptq_as_gguf(model: Any, kind: GgufType, batches: Iterable[torch.Tensor]) -> Mapping[str, Bytes]:
    """Round the matrices of a model's layers in place as a GGUF file stores them; return the bytes [O, bytes per row] by name."""
    from gguf import GGMLQuantizationType, quants

    encoded: dict[str, Bytes] = {}

    def round_linear(name: str, linear: nn.Linear, moments_II: torch.Tensor) -> torch.Tensor:
        form = tensor_type(kind, f"{name}.weight", tuple(linear.weight.shape))
        if not is_quantized(form):
            return linear.weight
        number, parts = GGMLQuantizationType[form], list[Bytes]()

        def round_block(block: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
            parts.append(quantize(block.float().numpy(), int(number), importance.float().numpy()))
            return torch.from_numpy(quants.dequantize(parts[-1], number))

        weight_OI = round_with_compensation(linear.weight, moments_II, block_size(int(number)), round_block)
        encoded[name] = np.concatenate(parts, axis=1)
        return weight_OI

    _round_layers(model, batches, round_linear)
    return encoded


def round_with_compensation(
    weight_OI: torch.Tensor, moments_II: torch.Tensor, size: int, round_block: RoundBlock
) -> torch.Tensor:
    """Round a matrix in blocks of `size` columns with compensation; `moments_II` are the inputs' second moments."""
    left_OI, upper_II = weight_OI.detach().double().cpu().clone(), _factor(moments_II)
    rounded_OI = torch.empty_like(left_OI)
    for first in range(0, left_OI.shape[1], size):
        block, later = slice(first, first + size), slice(first + size, None)
        inverse_BB = torch.linalg.solve_triangular(upper_II[block, block], torch.eye(size, dtype=torch.float64), upper=True)
        # the weight of a column's error after the best compensation by later columns
        rounded_OI[:, block] = round_block(left_OI[:, block].to(weight_OI.dtype), inverse_BB.square().sum(1)).double()
        left_OI[:, later] -= (left_OI[:, block] - rounded_OI[:, block]) @ inverse_BB @ upper_II[block, later]
    return rounded_OI.to(weight_OI.dtype)


def _factor(moments_II: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse."""
    diagonal = moments_II.diagonal()
    damped_II = moments_II + torch.eye(len(diagonal), dtype=torch.float64) * (DAMPING * diagonal.mean()).clamp(min=1e-12)
    upper_II: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped_II)), upper=True)
    return upper_II


def _round_layers(model: Any, batches: Iterable[torch.Tensor], round_linear: RoundMatrix) -> None:
    for name, layer, compute in layer_by_layer(model, batches):
        matrices = dict(linears(layer))
        moments = _second_moments(matrices, compute)
        for key, linear in matrices.items():
            linear.weight.copy_(round_linear(f"{name}.{key}", linear, moments.pop(key)))


def _second_moments(matrices: Mapping[str, nn.Linear], compute: Callable[[], None]) -> dict[str, torch.Tensor]:
    """Return the mean outer product of each matrix's inputs over the text, float64 [I, I].

    Each token's inputs are normalized: the first tokens of a text have activations hundreds of times larger (2402.17762), and
    would dominate the compensation.
    """
    sums = {key: torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64) for key, linear in matrices.items()}
    tokens = dict.fromkeys(matrices, 0)

    def watch(key: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            flat = nn.functional.normalize(inputs[0].flatten(0, -2), dim=-1)
            sums[key] += (flat.T @ flat).double().cpu()
            tokens[key] += flat.shape[0]

        return add

    handles = [linear.register_forward_pre_hook(watch(key)) for key, linear in matrices.items()]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return {key: total / max(1, tokens[key]) for key, total in sums.items()}
