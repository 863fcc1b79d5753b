"""Norms and histograms of gradients and weights by layer, to find where training diverges or stalls."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.sharding.checkpoints.state import trained_parameters
from ropewalk.sharding.group import Group, counts_piece

BINS = 32
_LOW = -24  # log2 of the smallest absolute value distinguished from 0; a bin is one power of two
EDGES = [0.0, *(2.0 ** (_LOW + number) for number in range(1, BINS + 1))]  # of absolute values
_NUMBER = re.compile(r"^(?:.*?\.)?(\d+)\.")
_WRAPPERS = ("base_model.model.", "_orig_mod.")


class LayerStats(NamedTuple):
    """Statistics of one step, by `LAYER/gradient` and `LAYER/weight`; counts are of absolute values between EDGES."""

    norms: dict[str, float]
    counts: dict[str, list[int]]


def layer_of(name: str) -> str:
    """Return the layer of a parameter: `layer-07` if it is numbered, else the module's own name (`embed_tokens`)."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    numbered = _NUMBER.match(name)
    if numbered:
        return f"layer-{int(numbered[1]):02d}"
    return (name.split(".")[-2:-1] or [name])[0]


class LayerWatch:
    """Measures the trained parameters by layer; all ranks together, in one small all-reduce."""

    def __init__(self, state: TrainState, group: Group, every: int) -> None:
        trained = {id(parameter) for parameter in trained_parameters(state.model, state.optimizer)}
        self.group, self._every = group, every
        self._layers: dict[str, list[nn.Parameter]] = {}
        for name, parameter in state.model.named_parameters():
            if id(parameter) in trained:
                pieces = self._layers.setdefault(layer_of(name), [])
                if counts_piece(parameter, group):  # each once, if several ranks hold it
                    pieces.append(parameter)

    def due(self, step: int) -> bool:
        """Return True if this step is measured."""
        return step % self._every == 0

    @torch.no_grad()
    def measure(self, weight: torch.Tensor) -> torch.Tensor:
        """Measure between backward and update, on the device; summed gradients are divided by `weight`, the global batch's."""
        rows = []
        for parameters in self._layers.values():
            gradients = [p.grad.to_local() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]
            rows.append(self._row(gradients, 1 / weight))
            rows.append(self._row([p.to_local() for p in parameters], torch.ones_like(weight)))  # type: ignore[attr-defined]
        return self.group.all_reduce_sum(torch.stack(rows))

    def stats(self, values: Sequence[float]) -> LayerStats:
        """Return the statistics that `measure` computed, given its values on the host."""
        total = [values[start : start + 1 + BINS] for start in range(0, len(values), 1 + BINS)]
        names = [f"{layer}/{what}" for layer in self._layers for what in ("gradient", "weight")]
        norms = {f"layers/{name}_norm": row[0] ** 0.5 for name, row in zip(names, total, strict=True)}
        return LayerStats(norms, {name: [round(count) for count in row[1:]] for name, row in zip(names, total, strict=True)})

    def _row(self, tensors: list[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
        """Return the sum of squares and the count of each bin."""
        row = torch.zeros(1 + BINS, dtype=torch.float64, device=self.group.device)
        for tensor in tensors:
            values = tensor.detach().float().flatten()
            row[0] += (torch.linalg.vector_norm(values).double() * scale) ** 2
            exponents = torch.frexp(values * scale).exponent  # 2^(e-1) <= |x| < 2^e; 0 for 0
            exponents = torch.where(values == 0, _LOW, exponents)
            bins = (exponents - _LOW - 1).clamp(0, BINS - 1).long()
            # bincount would read the largest bin on the host
            row[1:] += torch.zeros_like(row[1:]).scatter_add_(0, bins, torch.ones_like(row[:1]).expand_as(bins))
        return row
