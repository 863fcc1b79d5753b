"""Draw tokens: from numbers that depend on what is drawn alone, never on who draws it or what is drawn beside it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ropewalk.datapipe.loader.order import hash_words

# B rollouts, V vocabulary, T tokens


class Draw(NamedTuple):
    """Which rollout of the run this is: sample `sample` of the group that was drawn for place `slot` at try `attempt`."""

    slot: int  # of a prompt, counted over the whole run
    attempt: int  # with dynamic sampling: 0, then 1 where that group was of no use
    sample: int


class Sampling(NamedTuple):
    """From which distribution tokens are drawn."""

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None


def uniforms(seed: int, draws: Sequence[Draw], num_tokens: int) -> torch.Tensor:
    """Numbers in [0, 1), float64 [B, T]: those of a rollout are a function of the seed and its draw alone."""
    found = np.empty((len(draws), num_tokens))
    for row, draw in zip(found, draws, strict=True):
        key = [int(hash_words(seed, word, *draw)[0]) for word in (0, 1)]
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(num_tokens)
    return torch.from_numpy(found)


def choose(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row by its number, and the token's log-probability under the tempered distribution.

    That one is not cut to `top_p` and `top_k`: the ratio of two policies compares the same distribution of both, and is 1
    for equal policies. A ratio with one of them cut would not be, and has misled others.
    """
    log_probs_BV = torch.log_softmax(logits_BV.float() / sampling.temperature, dim=-1)
    weights_BV = _cut(log_probs_BV.double().exp(), sampling)
    sums_BV = weights_BV.cumsum(-1)
    # the first token whose sum is above: never one of probability 0
    token_B1 = torch.searchsorted(sums_BV, uniform_B.to(sums_BV)[:, None] * sums_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp(max=sums_BV.shape[1] - 1)
    return token_B1[:, 0], log_probs_BV.gather(1, token_B1)[:, 0]


def _cut(probs_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities, 0 outside of the nucleus and of the most likely `top_k`."""
    if sampling.top_p >= 1.0 and sampling.top_k is None:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    out_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p  # those before it have the mass already
    if sampling.top_k is not None:
        out_BV[:, sampling.top_k :] = True
    return probs_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), 0.0)
