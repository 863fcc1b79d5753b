"""Which tokens may be drawn: by the same rules, in the same order, as with transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ropewalk.jobs.inference.engines.sampler import Sampling
from ropewalk.jobs.inference.engines.transformers.decoding import Answer

DRAWS = 3000


def theirs(logits_V: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    """The probabilities of tokens by transformers, whose generate() takes its warpers in this order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits_V[None].clone())[0].softmax(0).numpy()


def drawn(logits_V: torch.Tensor, **rules: Any) -> Any:
    """How often each token is drawn in many places of an answer."""
    answer = Answer(None, [0], Sampling(seed=7, max_tokens=DRAWS, **rules), frozenset())
    counts = np.zeros(len(logits_V))
    for place in range(1, DRAWS + 1):
        counts[answer._choice(logits_V, place)[0]] += 1
    return counts / DRAWS


@pytest.mark.parametrize(
    "rules",
    [
        {"top_p": 0.85, "min_p": 0.15},
        {"top_k": 3, "min_p": 0.3},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.15},
        {"temperature": 2.0, "top_p": 0.7, "min_p": 0.55},
        {"temperature": 0.5, "min_p": 0.05},
        {"top_p": 0.85},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_tokens_are_left_out_as_by_transformers(rules: dict[str, Any]) -> None:
    logits_V = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]).log()
    found, wanted = drawn(logits_V, **{"temperature": 1.0, **rules}), theirs(logits_V, **rules)
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(wanted))
    assert found == pytest.approx(wanted, abs=0.04)  # four standard errors of a share
