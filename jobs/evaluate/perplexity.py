"""The loss of each sequence of a split, the ranks sharing the work, and the loss that a unigram model would have."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from datapipe.loader.loader import Source, TokenLoader
from jobs.training.batch import Batch
from jobs.training.objective import logits_of
from jobs.training.source import TokenSource
from jobs.training.validation import by_sequence
from sharding.fsdp import reshard_all
from sharding.group import Group

# B sequences, T tokens a sequence, V vocabulary


@torch.no_grad()
def sequence_losses(model: nn.Module, loader: TokenLoader, group: Group, *, num_sequences: int, micro_batch: int) -> torch.Tensor:
    """Summed nats of each of the first sequences of a split [num_sequences], float64, the same on every rank."""

    def score(batch: Batch) -> torch.Tensor:
        losses_BT = F.cross_entropy(logits_of(model, batch).float().transpose(1, 2), batch["labels"], reduction="none")
        return losses_BT.double().sum(dim=1, keepdim=True)

    source = TokenSource(loader, in_order=True)
    losses = by_sequence(score, source, group, num_sequences=num_sequences, micro_batch=micro_batch)
    reshard_all(model)
    return losses[:, 0]


def unigram_loss(sources: list[Source], scored: TokenLoader, num_sequences: int, vocabulary: int) -> float:
    """Nats a token of the same labels under the train split's token counts plus one: the score without any context."""
    train = TokenLoader(sources, seq_len=scored.seq_len, seed=scored.seed, split="train")
    counts = np.ones(vocabulary)
    for start in range(0, train.sequences, 256):
        tokens = train.in_order(start, min(start + 256, train.sequences))
        counts += np.bincount(tokens[:, 1:].ravel(), minlength=vocabulary)
    nats = -np.log(counts / counts.sum())
    total = sum(float(nats[scored.in_order(i, i + 1)[:, 1:]].sum()) for i in range(num_sequences))
    return total / (num_sequences * scored.seq_len)
