"""A student cut out of a teacher: calibrate, choose, cut; and what was cut, as plain values."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ropewalk.jobs.training.pruning.activations import Activations, collect
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.choose import Choice, choose
from ropewalk.jobs.training.pruning.config import PruneConfig
from ropewalk.jobs.training.pruning.cut import cut


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A smaller model, and the story of it."""

    model: Any  # of transformers: fp32, on the CPU; `save_pretrained` writes it
    choice: Choice
    record: dict[str, Any]  # plain values: sizes before and after, layers that stay, scores of layers


def prune(model: Any, config: PruneConfig, batches: Iterable[torch.Tensor] = ()) -> Pruned:
    """Cut a model as the configuration says. `batches` are token ids [B, T] of calibration text, read only where a score
    needs them (`config.needs_text`). `model` is unsharded and stays as it is.

    Raises ConfigError for an architecture that cannot be cut, and for sizes that cannot be.
    """
    Shape.of(model.config).cut(config)  # before the work
    found = collect(model, batches) if config.needs_text else None
    choice = choose(model, config, found)
    smaller = cut(model, choice)
    return Pruned(model=smaller, choice=choice, record=_record(model, smaller, config, choice, found))


def _record(model: Any, smaller: Any, config: PruneConfig, choice: Choice, found: Activations | None) -> dict[str, Any]:
    influence = (found.influence / max(1, found.tokens)).tolist() if found is not None else None
    return {
        "kept": config.plain(),
        "layers_by": config.layers_by,
        "channels_by": config.channels_by,
        "before": {**asdict(Shape.of(model.config)), "parameters": _count(model)},
        "after": {**asdict(Shape.of(smaller.config)), "parameters": _count(smaller)},
        "layers": choice.layers,
        "block_influence": influence,
        "calibration_tokens": found.tokens if found is not None else 0,
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
