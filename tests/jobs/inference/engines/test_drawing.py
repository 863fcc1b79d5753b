"""Sampling rules: the same as transformers', in the same order."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ropewalk.jobs.inference.engines.sampler import Sampling
from ropewalk.jobs.inference.engines.transformers import decoding
from ropewalk.jobs.inference.engines.transformers.decoding import Answer
from ropewalk.jobs.inference.scoring.open_model import open_model
from tests.jobs.tiny import tiny_model

DRAWS = 3000


def theirs(logits_V: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    """The probabilities of tokens by transformers, whose generate() takes its warpers in this order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits_V[None].clone())[0].softmax(0).numpy()


def drawn(logits_V: torch.Tensor, **rules: Any) -> Any:
    """Frequency of each token over many positions of an answer."""
    answer = Answer(None, [0], Sampling(seed=7, max_tokens=DRAWS, **rules), frozenset())
    counts = np.zeros(len(logits_V))
    for position in range(1, DRAWS + 1):
        counts[answer._choice(logits_V, position)[0]] += 1
    return counts / DRAWS


@pytest.mark.parametrize(
    "rules",
    [
        {"top_p": 0.85, "min_p": 0.15},
        {"top_k": 3, "min_p": 0.3},
        {"temperature": 2.0, "top_p": 0.7, "min_p": 0.55},
        {"min_p": 1.0},
        *(
            pytest.param(rules, marks=pytest.mark.soak("make test runs other combinations of these rules"))
            for rules in ({"top_k": 5, "top_p": 0.9, "min_p": 0.15}, {"temperature": 0.5, "min_p": 0.05}, {"top_p": 0.85})
        ),
    ],
    ids=str,
)
def test_tokens_are_left_out_as_by_transformers(rules: dict[str, Any]) -> None:
    logits_V = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]).log()
    result, wanted = drawn(logits_V, **{"temperature": 1.0, **rules}), theirs(logits_V, **rules)
    assert set(np.flatnonzero(result)) == set(np.flatnonzero(wanted))
    assert result == pytest.approx(wanted, abs=0.04)  # four standard errors of a share


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return open_model(str(tiny_model(tmp_path_factory.mktemp("drawing") / "model"))).model


@pytest.mark.parametrize("rounding", [False, True], ids=["clear choices", "any choice could be turned by rounding"])
@pytest.mark.parametrize(
    "rules",
    [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 0.0, "logprobs": 2}],
    ids=str,
)
def test_an_answer_that_another_process_has_begun_goes_on_as_it_would_have(
    rules: dict[str, Any], rounding: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:

    def draw(prompt: list[int], continued: int) -> list[Any]:
        answer = Answer(model, prompt, Sampling(max_tokens=20, seed=3, continued=continued, **rules), frozenset({256}))
        drawn = [answer.step()]
        while drawn[-1].ended is None:
            drawn.append(answer.step())
        return drawn

    prompt = list(b"a rope")
    whole = draw(prompt, 0)
    if rounding:
        monkeypatch.setattr(decoding, "token_noise", lambda dtype: 1e9)
    for begun in range(1, len(whole), 4):
        tokens = [step.token for step in draw([*prompt, *(step.token for step in whole[:begun])], begun)]
        assert tokens == [step.token for step in whole[begun:]]
