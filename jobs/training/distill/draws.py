"""A few tokens in the place of a whole distribution: drawn so that their mean is the distribution, or simply the likeliest."""

import numpy as np
import torch

from ropewalk.datapipe.loader.order import hash_words

# R rows, V vocabulary


def uniforms(seed: int, position: int, tokens: int) -> torch.Tensor:
    """A number in [0, 1) for each token of the sample at a position, float64: a function of (seed, position, token)."""
    words = hash_words(seed, position, np.arange(tokens))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) / 2.0**53)


def systematic_counts(probabilities_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int) -> torch.Tensor:
    """How often each token is drawn in `size` draws, [R, V] int64; each row sums up to `size`.

    The draws lie at (j + u) / size of the cumulated probabilities, j = 0 .. size - 1. Over u the mean of count / size is the
    probability, as of independent draws (Sparse Logit Sampling, 2503.16870), but a count is never 1 or more away from its mean.
    """
    ends_RV = probabilities_RV.double().cumsum(-1)
    ends_RV *= size / ends_RV[:, -1:]
    below_RV = (ends_RV - uniforms_R[:, None]).ceil_().clamp_(0, size).long()
    below_RV[:, -1] = size
    return below_RV.diff(dim=-1, prepend=torch.zeros_like(below_RV[:, :1]))


def sampled(logits_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and counts of the tokens that are drawn, row after row, and how many different ones each row has."""
    counts_RV = systematic_counts(logits_RV.float().softmax(-1), uniforms_R, size)
    rows, ids = counts_RV.nonzero(as_tuple=True)
    return ids, counts_RV[rows, ids], torch.bincount(rows, minlength=len(counts_RV))


def likeliest(logits_RV: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and probabilities of the likeliest tokens, scaled to sum up to 1, row after row; and how many each row has.

    Biased: a student that learns them holds every other token for impossible.
    """
    found = logits_RV.float().topk(min(size, logits_RV.shape[1]), dim=-1)
    sizes = torch.full((len(logits_RV),), found.indices.shape[1])
    return found.indices.flatten(), found.values.softmax(-1).flatten(), sizes


def entropy(logits_RV: torch.Tensor) -> torch.Tensor:
    """Nats of each row's distribution, [R]."""
    log_p_RV = logits_RV.float().log_softmax(-1)
    summed: torch.Tensor = -(log_p_RV.exp() * log_p_RV).sum(-1)
    return summed
