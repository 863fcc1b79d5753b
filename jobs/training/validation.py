"""The loss of every held-out sequence, the ranks sharing the work."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from jobs.training.objective import NextToken
from sharding.fsdp import free_gathered
from sharding.group import Group

if TYPE_CHECKING:
    from datapipe.loader.loader import TokenLoader


@torch.no_grad()
def sequence_losses(
    model: nn.Module, loader: "TokenLoader", group: Group, *, num_sequences: int, micro_batch: int
) -> torch.Tensor:
    """Summed nats of each of the first sequences of a split [num_sequences], float64, the same on every rank.

    The micro-batches do not depend on the world size. Ranks without one make a pass for nothing, since
    collectives must match.
    """
    losses = torch.zeros(num_sequences, dtype=torch.float64, device=group.device)
    starts = range(0, num_sequences, micro_batch)
    was_training = model.training
    model.eval()
    for turn in range(math.ceil(len(starts) / group.data_size)):
        number = turn * group.data_size + group.data_rank
        start = starts[number] if number < len(starts) else num_sequences
        stop = min(start + micro_batch, num_sequences)
        empty = torch.zeros(1, loader.seq_len + 1, dtype=torch.int64)
        batch = torch.from_numpy(loader.in_order(start, stop)) if stop > start else empty
        found = NextToken().losses(model, batch.to(group.device)).view(len(batch), -1)
        if stop > start:
            losses[start:stop] = found.double().sum(dim=1)
    free_gathered(model)
    model.train(was_training)
    return group.sum_over_data(losses)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The cross entropy in bits a UTF-8 byte of text: comparable between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token
