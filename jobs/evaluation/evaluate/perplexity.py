"""Loss of each sequence of a split, computed by all ranks; the model's confidence; and the loss of a unigram model."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.head import each_token
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.loop.validation import by_sequence
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# B sequences, T tokens a sequence, R tokens of a chunk, V vocabulary, K bins of confidence
BINS = 10
RESAMPLES = 200


class ScoredSequences(NamedTuple):
    """Results of each sequence, float64, equal on every rank."""

    losses: torch.Tensor  # summed nats [num_sequences]
    sure: torch.Tensor  # [num_sequences, 3, K]: tokens, summed confidence and correct predictions of each bin


@torch.no_grad()
def score_sequences(
    model: nn.Module, loader: TokenLoader, group: Group, *, num_sequences: int, micro_batch: int
) -> ScoredSequences:
    """Score the first sequences of a split."""

    def score(batch: Batch) -> torch.Tensor:
        losses_BT, confidence_BT, right_BT = (each.double() for each in each_token(model, batch, _score))
        bin_BT = (confidence_BT * BINS).long().clamp(max=BINS - 1)
        parts = (torch.ones_like(confidence_BT), confidence_BT, right_BT)
        sums = [torch.zeros(len(losses_BT), BINS, dtype=torch.float64).to(bin_BT.device) for _ in parts]
        binned = [empty.scatter_add_(1, bin_BT, values) for empty, values in zip(sums, parts, strict=True)]
        return torch.cat((losses_BT.sum(dim=1, keepdim=True), *binned), dim=1)

    source, values = TokenSource(loader, in_order=True), 1 + 3 * BINS
    values_of_sequence = by_sequence(score, source, group, num_sequences=num_sequences, micro_batch=micro_batch, values=values)
    reshard_all(model)
    return ScoredSequences(values_of_sequence[:, 0], values_of_sequence[:, 1:].view(num_sequences, 3, BINS))


def _score(logits_RV: torch.Tensor, tokens: Batch) -> list[torch.Tensor]:
    """Return the cross entropy of each token, the largest probability, and 1 if that is the label's, else 0."""
    logits_RV, labels_R = logits_RV.float(), tokens["labels"]
    top_R, likeliest_R = logits_RV.max(-1)
    losses_R = F.cross_entropy(logits_RV, labels_R, reduction="none")
    return [losses_R, (top_R - logits_RV.logsumexp(-1)).exp(), (likeliest_R == labels_R).float()]


def calibration(sure: torch.Tensor, seed: int) -> dict[str, Any]:
    """Return the expected calibration error of the next token, its standard error by bootstrap, token count, and bins.

    The confidence is the probability of the likeliest token (Guo and others, arXiv 1706.04599).
    """
    each = sure.cpu().numpy()
    chosen = np.random.default_rng(seed).integers(0, len(each), (RESAMPLES, len(each)))
    drawn = [_calibration_error(each[rows].sum(0)) for rows in chosen]
    tokens, confidence, right = each.sum(0)
    bins = [
        {"from": number / BINS, "to": (number + 1) / BINS, "confidence": sure / n, "accuracy": hits / n, "tokens": int(n)}
        for number, (n, sure, hits) in enumerate(zip(tokens.tolist(), confidence.tolist(), right.tolist(), strict=True))
        if n
    ]
    error = float(np.std(drawn, ddof=1)) if len(each) > 1 else None
    return {"ece": _calibration_error(each.sum(0)), "standard_error": error, "n": int(tokens.sum()), "bins": bins}


def _calibration_error(sums: Any) -> float:
    tokens, confidence, right = sums
    return float(np.abs(confidence - right).sum() / tokens.sum())


def unigram_loss(sources: list[Source], scored: TokenLoader, num_sequences: int, vocabulary: int) -> float:
    """Return nats per token of the same labels under the train split's token counts plus one: the score without context."""
    train = TokenLoader(sources, seq_len=scored.seq_len, seed=scored.seed, split="train")
    counts = np.ones(vocabulary)
    for start in range(0, train.sequences, 256):
        tokens = train.in_order(start, min(start + 256, train.sequences))
        counts += np.bincount(tokens[:, 1:].ravel(), minlength=vocabulary)
    nats = -np.log(counts / counts.sum())
    total = sum(float(nats[scored.in_order(i, i + 1)[:, 1:]].sum()) for i in range(num_sequences))
    return total / (num_sequences * scored.seq_len)
