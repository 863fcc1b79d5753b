"""What is learnt: functions from a model and a batch to sums of losses, of weights and of metrics."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.losses import summed_cross_entropy

# B samples, T tokens a sample, N = B*T, V vocabulary

_WORTH_IT = 0.75  # share of positions with a label, above which all logits are computed


class LossTerms(NamedTuple):
    """What an objective finds in a batch. Sums, never means, so that they add over micro-batches and ranks."""

    loss_sum: torch.Tensor  # 0-dim, with a gradient: the summed loss of all that counts
    weight: torch.Tensor  # 0-dim, without a gradient: how many tokens, pairs or sequences it is the sum of
    metrics: Mapping[str, torch.Tensor] = MappingProxyType({})  # name → [sum, count], detached


class Objective(Protocol):
    """The loss of a step is `loss_sum` over `weight`, each summed over all micro-batches of all ranks."""

    @property
    def metric_names(self) -> Sequence[str]:
        """The metrics of every batch, reported as train/NAME and validation/NAME."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """The terms of a micro-batch. It may weigh nothing: then they are zeros, and no NaN."""
        ...


class NextToken:
    """Each token is predicted from those before it, where `labels` are not IGNORE: pretraining and finetuning alike."""

    metric_names = ()

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Summed negative log-likelihood of the labels in nats, and their number."""
        labels_BT = batch["labels"]
        kept = _counted_positions(model, labels_BT)
        if kept is None:
            logits_BTV = logits_of(model, batch)
        else:
            labels_BT, logits_BTV = labels_BT[:, kept], logits_of(model, batch, logits_to_keep=kept)
        labels_N = labels_BT.flatten()
        return LossTerms(summed_cross_entropy(logits_BTV.flatten(0, 1), labels_N), weight=(labels_N != IGNORE).sum())


def logits_of(model: nn.Module, batch: Batch, **options: torch.Tensor) -> torch.Tensor:
    """What the model says of a batch, [B, T, V]; it takes everything but the labels by name."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits_BTV: torch.Tensor = model(**inputs, **options, use_cache=False).logits
    return logits_BTV


def _counted_positions(model: nn.Module, labels_BT: torch.Tensor) -> torch.Tensor | None:
    """The positions at which any sample has a label, where that spares the model's head much work; None: all of them.

    On a GPU the count would have to be waited for.
    """
    if labels_BT.is_cuda or not _keeps_logits(type(model).forward):
        return None
    counted_T = (labels_BT != IGNORE).any(0)
    counted_T[0] = True  # so that a filler has logits too
    positions = counted_T.nonzero()[:, 0]
    return positions if len(positions) <= _WORTH_IT * len(counted_T) else None


@cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


class TermSums:
    """Loss, weight and metrics of an objective, added up over micro-batches in float64."""

    def __init__(self, metric_names: Sequence[str], device: torch.device) -> None:
        self.metric_names = metric_names
        self.values = torch.zeros(2 + 2 * len(metric_names), dtype=torch.float64, device=device)

    def add(self, terms: LossTerms) -> None:
        """Count a micro-batch."""
        pairs = chain.from_iterable(terms.metrics[name].unbind() for name in self.metric_names)
        self.values += torch.stack([value.detach().double() for value in (terms.loss_sum, terms.weight, *pairs)])


class Means(NamedTuple):
    """The mean loss and metrics of what all ranks have added up."""

    loss: float  # NaN where the weight is 0
    weight: float
    metrics: dict[str, float]  # without those that nothing was counted for

    @classmethod
    def of(cls, values: Sequence[float], metric_names: Sequence[str]) -> "Means":
        """Divide the sums of a `TermSums`."""
        loss, weight, *pairs = values
        return cls(loss / weight if weight else float("nan"), weight, dict(_ratios(pairs, metric_names)))


def _ratios(pairs: Sequence[float], names: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name, total, count in zip(names, pairs[::2], pairs[1::2], strict=True):
        if count:
            yield name, total / count
