"""Reproducible sampling of tokens: the random numbers of a rollout depend on its identity alone, not on rank or batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ropewalk.datapipe.loader.order import hash_words

# B rollouts, V vocabulary, T tokens


class Draw(NamedTuple):
    """The identity of a rollout in the run: sample `sample` of the group for prompt slot `slot` at try `attempt`."""

    slot: int  # number of the prompt, counted over the whole run
    attempt: int  # of dynamic sampling: 0, then 1 if that group has no signal
    sample: int


class Sampling(NamedTuple):
    """Parameters of the sampling distribution."""

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None


def uniforms(seed: int, draws: Sequence[Draw], num_tokens: int) -> torch.Tensor:
    """Return numbers in [0, 1), float64 [B, T]: those of a rollout are a function of the seed and its identity alone."""
    numbers = np.empty((len(draws), num_tokens))
    for row, draw in zip(numbers, draws, strict=True):
        key = [int(hash_words(seed, word, *draw)[0]) for word in (0, 1)]
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(num_tokens)
    return torch.from_numpy(numbers)


def choose(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token of each row by its number; returns it with its log-probability under the tempered distribution.

    The log-probability ignores `top_p` and `top_k`: the ratio of two policies then compares the same distribution, and is 1
    for equal policies. With one of them truncated it would not be.
    """
    log_probs_BV = torch.log_softmax(logits_BV.float() / sampling.temperature, dim=-1)
    weights_BV = _cut(log_probs_BV.double().exp(), sampling)
    sums_BV = weights_BV.cumsum(-1)
    # the first token with a larger cumulative sum: never one of probability 0
    token_B1 = torch.searchsorted(sums_BV, uniform_B.to(sums_BV)[:, None] * sums_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp(max=sums_BV.shape[1] - 1)
    return token_B1[:, 0], log_probs_BV.gather(1, token_B1)[:, 0]


def _cut(probs_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Set probabilities outside of the nucleus and of the most likely `top_k` to 0."""
    if sampling.top_p >= 1.0 and sampling.top_k is None:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    out_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p  # tokens before it already have this mass
    if sampling.top_k is not None:
        out_BV[:, sampling.top_k :] = True
    return probs_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), 0.0)
