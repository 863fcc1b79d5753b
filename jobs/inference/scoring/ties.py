"""Detect decisions that rounding could change, so that they are made again exactly and reported."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from ropewalk.jobs.inference.scoring.requests import LogLikelihood, Request

# Largest change (nats) of a token's log-probability by what is computed beside it; many times the measured values.
_NOISE = {torch.float32: 2e-4, torch.float64: 1e-9}
_COARSE_NOISE = 0.1  # bfloat16, float16


def token_noise(dtype: torch.dtype) -> float:
    """Return the largest rounding error of a token's log-probability in this number format (nats)."""
    return _NOISE.get(dtype, _COARSE_NOISE)


def near_tie(requests: Sequence[Request], answers: Sequence[LogLikelihood], noise: float) -> bool:
    """Return True if rounding could change a decision about these answers: greedy or not, and which is the likeliest.

    The likeliest is decided in total, per token, and by each of the requests' lengths. A sum over k tokens moves by at most
    k times a token's noise.
    """
    if any(abs(answer.margin) <= 2 * noise for answer in answers):
        return True
    sums = [(answer.value, answer.tokens * noise) for answer in answers]
    lengths = [(1.0, float(answer.tokens), *request.lengths) for request, answer in zip(requests, answers, strict=True)]
    for by in zip(*lengths, strict=False):
        scaled = sorted((value / length, reach / length) for (value, reach), length in zip(sums, by, strict=True) if length)
        # comparing neighbours suffices: between any two answers near a tie lie neighbours near a tie
        if any(high - low <= reach + its for (low, reach), (high, its) in pairwise(scaled)):
            return True
    return False
