"""Sparse distributions: tokens sampled without bias, or the likeliest ones."""

import numpy as np
import torch

from ropewalk.datapipe.loader.order import hash_words

# R rows, V vocabulary


def uniforms(seed: int, position: int, tokens: int) -> torch.Tensor:
    """Return a number in [0, 1) for each token of the sample at a position, float64: a function of (seed, position, token)."""
    hashes = hash_words(seed, position, np.arange(tokens))
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) / 2.0**53)


def systematic_counts(probabilities_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int) -> torch.Tensor:
    """Count the draws of each token in `size` draws, [R, V] int64; each row sums up to `size`.

    The draws are at (j + u) / size of the cumulative probabilities, j = 0 .. size - 1. Over u the mean of count / size is the
    probability, as for independent draws (Sparse Logit Sampling, 2503.16870), but a count differs from its mean by less than 1.
    """
    ends_RV = probabilities_RV.double().cumsum(-1)
    ends_RV *= size / ends_RV[:, -1:]
    below_RV = (ends_RV - uniforms_R[:, None]).ceil_().clamp_(0, size).long()
    below_RV[:, -1] = size
    return below_RV.diff(dim=-1, prepend=torch.zeros_like(below_RV[:, :1]))


def sample_tokens(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample tokens of each row; returns ids and counts, row after row, and the number of different tokens of each row."""
    counts_RV = systematic_counts(logits_RV.float().softmax(-1), uniforms_R, size)
    rows, ids = counts_RV.nonzero(as_tuple=True)
    return ids, counts_RV[rows, ids], torch.bincount(rows, minlength=len(counts_RV))


def likeliest(logits_RV: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and probabilities of the likeliest tokens, rescaled to sum up to 1, row after row; and their number per row.

    Biased: a student learns that all other tokens are impossible.
    """
    top = logits_RV.float().topk(min(size, logits_RV.shape[1]), dim=-1)
    sizes = torch.full((len(logits_RV),), top.indices.shape[1])
    return top.indices.flatten(), top.values.softmax(-1).flatten(), sizes


def entropy(logits_RV: torch.Tensor) -> torch.Tensor:
    """Compute the entropy of each row's distribution in nats, [R]."""
    log_p_RV = logits_RV.float().log_softmax(-1)
    summed: torch.Tensor = -(log_p_RV.exp() * log_p_RV).sum(-1)
    return summed
