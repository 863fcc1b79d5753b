"""Decisions that rounding could turn: found, so that they are made again exactly, and reported."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from ropewalk.jobs.inference.scoring.requests import LogLikelihood, Request

# Nats by which the log-probability of one token may move with what is computed beside it; many times what was measured.
_NOISE = {torch.float32: 2e-4, torch.float64: 1e-9}
_COARSE_NOISE = 0.1  # bfloat16, float16


def token_noise(dtype: torch.dtype) -> float:
    """The most that rounding moves a token's log-probability in this number format, nats."""
    return _NOISE.get(dtype, _COARSE_NOISE)


def near_tie(requests: Sequence[Request], answers: Sequence[LogLikelihood], noise: float) -> bool:
    """Whether rounding could change a decision about these answers: whether each is greedy, and which is the likeliest, in
    total, by token, or by one of the requests' lengths. A sum of k tokens moves by k times a token's noise at most.
    """
    if any(abs(answer.margin) <= 2 * noise for answer in answers):
        return True
    sums = [(answer.value, answer.tokens * noise) for answer in answers]
    lengths = [(1.0, float(answer.tokens), *request.lengths) for request, answer in zip(requests, answers, strict=True)]
    for by in zip(*lengths, strict=False):
        scaled = sorted((value / length, reach / length) for (value, reach), length in zip(sums, by, strict=True) if length)
        # neighbours are enough: a pair that is near a tie has one between it, or is one
        if any(high - low <= reach + its for (low, reach), (high, its) in pairwise(scaled)):
            return True
    return False
