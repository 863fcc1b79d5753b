"""The mean loss and metrics of the first samples of a validation source, the ranks sharing the work."""

import math
from collections.abc import Callable

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import Batch, to_device
from ropewalk.jobs.training.loop.objective import Means, Objective, TermSums
from ropewalk.jobs.training.loop.source import Source
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group


@torch.no_grad()
def validate(
    model: nn.Module, objective: Objective, source: Source, group: Group, *, num_samples: int, micro_batch: int
) -> Means:
    """Apply the training objective to samples 0 .. num_samples - 1 of a source; the same result on every rank.

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
    """What `score` says of each of the first sequences of a source, [num_sequences, values], float64, the same on every rank.

    The micro-batches do not depend on the number of ranks. A rank without one computes a filler, since collectives
    must match.
    """
    found = torch.zeros(num_sequences, values, dtype=torch.float64, device=group.device)
    for turn in range(math.ceil(math.ceil(num_sequences / micro_batch) / group.data_size)):
        start = (turn * group.data_size + group.data_rank) * micro_batch
        positions = range(start, min(start + micro_batch, num_sequences))
        batch = to_device(source.read(positions) if positions else source.filler(), group.device)
        scores = score(batch)
        if positions:
            found[positions.start : positions.stop] = scores
    return group.sum_over_data(found)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The cross entropy in bits a UTF-8 byte of text: comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
