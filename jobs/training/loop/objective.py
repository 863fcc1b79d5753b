"""Objectives: functions from a model and a batch to sums of losses, weights and metrics."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.project import user_object, wrong_kind
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.documents import known_documents
from ropewalk.jobs.training.loop.head import sum_over_tokens
from ropewalk.jobs.training.loop.losses import cross_entropy, regularized_cross_entropy

# B samples, T tokens a sample, N = B*T, V vocabulary


class LossTerms(NamedTuple):
    """The loss of a batch. Sums, never means, so that they add over micro-batches and ranks."""

    loss_sum: torch.Tensor  # 0-dim, with a gradient: the summed loss
    weight: torch.Tensor  # 0-dim, without a gradient: the number of tokens, pairs or sequences in the sum
    metrics: Mapping[str, torch.Tensor] = MappingProxyType({})  # name → [sum, count], detached


class Objective(Protocol):
    """A loss function. The loss of a step is `loss_sum` over `weight`, each summed over all micro-batches of all ranks."""

    @property
    def metric_names(self) -> Sequence[str]:
        """The metrics of every batch, reported as train/NAME and validation/NAME."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Compute the terms of a micro-batch. If its weight is zero the terms are zeros, not NaN."""
        ...


class NextToken:
    """Next-token prediction where `labels` are not IGNORE, for pretraining and finetuning."""

    metric_names = ()

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        (loss,) = sum_over_tokens(model, batch, cross_entropy)
        return LossTerms(loss, weight=(batch["labels"] != IGNORE).sum())


class NextTokenZLoss:
    """Next-token prediction that keeps log Z of the logits near 0 (z-loss, PaLM, arXiv 2204.02311).

    The reported loss is the cross entropy; the penalty only adds to its gradient.
    """

    metric_names = ("log_z",)

    def __init__(self, z_loss: float) -> None:
        self._function = regularized_cross_entropy(z_loss)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        loss, log_z = sum_over_tokens(model, batch, self._function)
        weight = (batch["labels"] != IGNORE).sum()
        return LossTerms(loss, weight, {"log_z": torch.stack([log_z.detach(), weight])})


def make_objective(name: str | None, z_loss: float | None = None) -> Objective:
    """Return the user's objective MODULE:NAME, a class or an instance; None: next-token prediction. Raises ConfigError."""
    if name is None:
        return NextToken() if z_loss is None else NextTokenZLoss(z_loss)
    value = user_object("objective", name)
    try:
        objective: Objective = value() if isinstance(value, type) else value
    except TypeError as error:
        raise ConfigError(f"objective: {name}: {error}; its class is called without arguments") from error
    metric_names = getattr(objective, "metric_names", None)
    if not callable(objective) or not isinstance(metric_names, (tuple, list)):
        wanted = 'a class with `metric_names`, such as ("log_z",), and `__call__(self, model, batch)`'
        raise wrong_kind("objective", name, value, wanted)
    return objective


def logits_of(model: nn.Module, batch: Batch, **options: torch.Tensor) -> torch.Tensor:
    """Return the model's logits for a batch, [B, T, V]; the model takes everything but the labels by name."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with known_documents(inputs):
        logits_BTV: torch.Tensor = model(**inputs, **options, use_cache=False).logits
    return logits_BTV


class TermSums:
    """Sums of loss, weight and metrics over micro-batches, in float64."""

    def __init__(self, metric_names: Sequence[str], device: torch.device) -> None:
        self.metric_names = metric_names
        self.values = torch.zeros(2 + 2 * len(metric_names), dtype=torch.float64, device=device)

    def add(self, terms: LossTerms) -> None:
        pairs = chain.from_iterable(terms.metrics[name].unbind() for name in self.metric_names)
        self.values += torch.stack([value.detach().double() for value in (terms.loss_sum, terms.weight, *pairs)])


class Means(NamedTuple):
    """Mean loss and metrics over all ranks."""

    loss: float  # NaN where the weight is 0
    weight: float
    metrics: dict[str, float]  # without metrics whose count is 0

    @classmethod
    def of(cls, values: Sequence[float], metric_names: Sequence[str]) -> "Means":
        loss, weight, *pairs = values
        return cls(loss / weight if weight else float("nan"), weight, dict(_ratios(pairs, metric_names)))


def _ratios(pairs: Sequence[float], names: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name, total, count in zip(names, pairs[::2], pairs[1::2], strict=True):
        if count:
            yield name, total / count
