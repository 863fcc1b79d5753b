"""Validation: score the model on held-out samples, with the ranks sharing the work."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.loop.batch import Batch, to_device
from ropewalk.jobs.training.loop.objective import Means, Objective, TermSums
from ropewalk.jobs.training.loop.source import Source, TokenSource
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group


class Validation(ABC):
    """The validation of a run."""

    # the loss is that of training, on other samples: their difference is reported as validation/gap, a measure of memorization
    comparable = True

    @abstractmethod
    def score(self, state: TrainState, objective: Objective, limit: int) -> Means:
        """Score the model on at most `limit` samples; the same result on every rank. `objective` is that of training."""


class HeldOut(Validation):
    """The training objective on the first samples of a held-out source."""

    def __init__(
        self,
        source: Source,
        group: Group,
        *,
        micro_batch: int,
        bytes_per_token: float | None = None,  # of the held-out text: report bits per byte too
        comparable: bool = True,
    ) -> None:
        self.source, self.group, self.micro_batch = source, group, micro_batch
        self.bytes_per_token, self.comparable = bytes_per_token, comparable

    def score(self, state: TrainState, objective: Objective, limit: int) -> Means:
        num_samples = min(self.source.epoch_samples or limit, limit)
        means = validate(state.model, objective, self.source, self.group, num_samples=num_samples, micro_batch=self.micro_batch)
        if self.bytes_per_token is not None:
            means.metrics["bits_per_byte"] = bits_per_byte(means.loss, self.bytes_per_token)
        return means


def held_out_tokens(
    loader: TokenLoader | None,
    group: Group,
    *,
    micro_batch: int,
    comparable: bool = True,
    cross_entropy: bool = True,
    document_start: int | None = None,  # of TokenSource
) -> HeldOut | None:
    """Validation on the sequences of a loader, in their order on disk; None if there are none.

    With `cross_entropy`, the unit of the objective's loss is nats per token, and bits per byte are reported too.
    """
    if loader is None:
        return None
    source = TokenSource(loader, in_order=True, document_start=document_start)
    bytes_per_token = loader.bytes_per_token if cross_entropy else None
    return HeldOut(source, group, micro_batch=micro_batch, bytes_per_token=bytes_per_token, comparable=comparable)


@torch.no_grad()
def validate(
    model: nn.Module, objective: Objective, source: Source, group: Group, *, num_samples: int, micro_batch: int
) -> Means:
    """Apply an objective to samples 0 .. num_samples - 1 of a source; the same result on every rank.

    The micro-batches do not depend on the number of ranks. A rank without one computes the source's filler, since
    collectives must match.
    """
    sums = TermSums(objective.metric_names, group.device)
    filler = to_device(source.filler(), group.device)
    num_micro_batches = math.ceil(num_samples / micro_batch)
    was_training = model.training
    model.eval()
    for turn in range(math.ceil(num_micro_batches / group.data_size)):
        start = (turn * group.data_size + group.data_rank) * micro_batch
        positions = range(start, min(start + micro_batch, num_samples))
        terms = objective(model, to_device(source.read(positions), group.device) if positions else filler)
        if positions:
            sums.add(terms)
    reshard_all(model)
    model.train(was_training)
    return Means.of(group.sum_over_data(sums.values).tolist(), objective.metric_names)


@torch.no_grad()
def by_sequence(
    score: Callable[[Batch], torch.Tensor], source: Source, group: Group, *, num_sequences: int, micro_batch: int, values: int = 1
) -> torch.Tensor:
    """Score each of the first sequences of a source, [num_sequences, values], float64, the same on every rank.

    The micro-batches do not depend on the number of ranks. A rank without one computes a filler, since collectives
    must match.
    """
    result = torch.zeros(num_sequences, values, dtype=torch.float64, device=group.device)
    for turn in range(math.ceil(math.ceil(num_sequences / micro_batch) / group.data_size)):
        start = (turn * group.data_size + group.data_rank) * micro_batch
        positions = range(start, min(start + micro_batch, num_sequences))
        batch = to_device(source.read(positions) if positions else source.filler(), group.device)
        scores = score(batch)
        if positions:
            result[positions.start : positions.stop] = scores
    return group.sum_over_data(result)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Convert a cross entropy to bits per UTF-8 byte of text, which is comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
