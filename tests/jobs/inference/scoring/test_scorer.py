"""Log-likelihoods: those of transformers, and decisions that no packing changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.inference.scoring.encode import pair_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.inference.scoring.requests import LogLikelihood, Request
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.inference.scoring.ties import near_tie
from tests.jobs.tiny import tiny_model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(str(tiny_model(tmp_path_factory.mktemp("tiny") / "model")))


def questions(number: int, seed: int = 0, longest: int = 200) -> list[list[Request]]:
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in random.integers(0, 256, size=random.integers(low, high)))

    def question() -> list[Request]:
        context = tokens(1, longest)
        return [Request(context, item, (float(2 * len(item)),)) for item in [tokens(1, 12) for _ in range(4)]]

    return [question() for _ in range(number)]


def behind(beginning: tuple[int, ...], units: list[list[Request]]) -> list[list[Request]]:
    """Requests with the same questions after the same examples."""
    return [[request._replace(context=(*beginning, *request.context)) for request in unit] for unit in units]


def by_hand(model: Any, request: Request) -> tuple[float, bool]:
    """The definition: log-softmax of the whole sequence, summed over the continuation."""
    ids = torch.tensor([[*request.context, *request.continuation]])
    with torch.no_grad():
        each = model(ids).logits.double().log_softmax(-1)[0, len(request.context) - 1 : -1]
    targets = torch.tensor(request.continuation)
    return float(each.gather(1, targets[:, None]).sum()), bool((each.argmax(1) == targets).all())


def test_answers_are_those_of_transformers(opened: OpenModel) -> None:
    scorer = Scorer(opened)
    assert scorer.shares
    units = questions(12)
    for number, answers in scorer.units(units):
        for request, answer in zip(units[number], answers, strict=True):
            value, greedy = by_hand(opened.model, request)
            assert answer.value == pytest.approx(value, abs=1e-5 * answer.tokens)
            assert answer.greedy == greedy


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mamba", "bloom", "mistral", "qwen2"])
def test_every_kind_of_model_gives_its_own_answers(kind: str, tmp_path: Path) -> None:
    """Also those that cannot share a context: learned positions, ALiBi, a recurrence, attention that slides."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    values: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "opt": {**small, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
        "mistral": {"sliding_window": 16},
        "qwen2": {},
    }
    model = open_model(str(tiny_model(tmp_path / kind, model_type=kind, **values[kind])))
    scorer, units = Scorer(model), [*questions(3, longest=40), *behind(tuple(range(60)), questions(3, longest=40))]
    for number, answers in scorer.units(units):
        for request, answer in zip(units[number], answers, strict=True):
            assert answer.value == pytest.approx(by_hand(model.model, request)[0], abs=1e-4 * answer.tokens)


def decisions(answers: list[LogLikelihood], unit: list[Request]) -> tuple[int, int, int, list[bool]]:
    values = np.array([answer.value for answer in answers])
    lengths, tokens = np.array([r.lengths[0] for r in unit]), np.array([a.tokens for a in answers])
    by = [int(np.argmax(v)) for v in (values, values / lengths, values / tokens)]
    return by[0], by[1], by[2], [answer.greedy for answer in answers]


@pytest.mark.parametrize(
    ("alone", "together", "sizes"),
    [
        (10, 6, (1, 4, 32)),
        pytest.param(16, 8, (1, 4, 16, 32), marks=pytest.mark.soak("more questions and orders; make test runs 16 in three")),
    ],
)
def test_decisions_do_not_depend_on_what_is_computed_beside(
    opened: OpenModel, alone: int, together: int, sizes: tuple[int, ...]
) -> None:
    units = [*questions(alone, seed=1, longest=120), *behind(tuple(range(150)), questions(together, seed=2, longest=40))]
    tie = units[7][0]
    units.append([tie, tie, Request(tie.context, tie.continuation[:-1], tie.lengths)])  # an exact tie: the first wins
    shuffled = list(np.random.default_rng(0).permutation(len(units)))
    plain = [[Scorer(opened).exact(request) for request in unit] for unit in units]
    expected = [decisions(answers, unit) for answers, unit in zip(plain, units, strict=True)]
    orders = {1: list(range(len(units))), 4: shuffled, 16: shuffled, 32: shuffled[::-1]}
    for size in sizes:
        order = orders[size]
        result = dict(Scorer(opened, batch_size=size, batch_tokens=4000).units([units[i] for i in order]))
        assert [decisions(result[order.index(i)], units[i]) for i in range(len(units))] == expected
    assert result[order.index(len(units) - 1)][0].exact


def test_what_is_near_a_tie_is_found() -> None:
    def answer(value: float, tokens: int = 2, margin: float = 1.0) -> LogLikelihood:
        return LogLikelihood(value=value, greedy=False, margin=margin, tokens=tokens)

    requests = [Request((1,), (1, 2), (10.0,)), Request((1,), (1, 2), (20.0,)), Request((1,), (1, 2), (30.0,))]
    assert not near_tie(requests, [answer(-5.0), answer(-6.0), answer(-7.0)], 1e-4)
    assert near_tie(requests, [answer(-5.0), answer(-7.0), answer(-5.0003)], 1e-4)
    assert near_tie(requests, [answer(-5.0, 1), answer(-10.0, 2), answer(-17.0)], 1e-4)  # group_by_beginning by token
    assert near_tie(requests, [answer(-5.0), answer(-10.0001), answer(-17.0)], 1e-4)  # group_by_beginning by length
    assert near_tie(requests, [answer(-5.0, margin=1e-4), answer(-6.0), answer(-7.0)], 1e-4)


def test_contexts_are_shared(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[int] = []
    scorer, forward = Scorer(opened), opened.model.model.forward  # the decoder; the head is called for each chunk

    def counting(*args: Any, **inputs: Any) -> Any:
        observed.append(inputs["input_ids"].shape[1])
        return forward(*args, **inputs)

    monkeypatch.setattr(opened.model.model, "forward", counting)
    context = tuple(range(100))
    scorer.score([Request(context, (i, 2, 3)) for i in range(5)])
    assert observed == [110]
    observed.clear()
    few = Scorer(opened, batch_tokens=8)  # fewer than the context has
    observed.clear()
    few.score([Request(context, (i,)) for i in range(5)])
    assert observed == [100]


def test_a_text_longer_than_the_model_sees_loses_its_beginning(opened: OpenModel) -> None:
    long = Request(tuple(i % 256 for i in range(400)), (1, 2, 3))
    observed = Request(long.context[-254:], long.continuation)  # 256 positions, the last token is only predicted
    assert Scorer(opened).score([long])[0].value == pytest.approx(Scorer(opened).score([observed])[0].value, abs=1e-6)
    with pytest.raises(DataError, match="continuation has 300 tokens, the model sees 256"):
        Scorer(opened).score([Request((1,), (2,) * 300)])
    with pytest.raises(DataError, match="empty continuation"):
        Scorer(opened).score([Request((1,), ())])


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer in .*copy the tokenizer's files"):
        open_model(str(tiny_model(tmp_path / "bare", tokenizer=False)))


def test_text_becomes_tokens_as_one_reads_it(opened: OpenModel) -> None:
    assert pair_request(opened, "a ", "b") == Request(tuple(b"a"), tuple(b" b"))
    assert pair_request(opened, "", "b") == Request((256,), tuple(b"b"))


def test_a_beginning_is_computed_once(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the examples before each item; two beginnings, and what begins with neither."""
    observed: list[int] = []
    scorer, forward = Scorer(opened), opened.model.model.forward  # the decoder; the head is called for each chunk
    assert scorer.shares_beginnings

    def counting(*args: Any, **inputs: Any) -> Any:
        observed.append(inputs["input_ids"].shape[1])
        return forward(*args, **inputs)

    first, second = tuple(range(200)), tuple(range(100, 200))
    units = [*behind(first, questions(5, longest=10)), *behind(second, questions(5, longest=10)), *questions(2, longest=10)]
    monkeypatch.setattr(opened.model.model, "forward", counting)
    result = dict(scorer.units(units))
    monkeypatch.undo()
    assert sum(observed) < 200 + 100 + 12 * (10 + 4 * 12), "not ten times 100 and more"
    for number, unit in enumerate(units):
        for request, answer in zip(unit, result[number], strict=True):
            assert answer.value == pytest.approx(by_hand(opened.model, request)[0], abs=1e-5 * answer.tokens)
