"""A draft changes how soon an answer is there, and never the answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.engine import Capabilities, EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.inference.engines.sampler import Sampling
from ropewalk.jobs.inference.engines.transformers import decoding, guesses
from ropewalk.jobs.inference.engines.transformers.decoding import Answer
from ropewalk.jobs.inference.engines.transformers.guesses import Draft
from ropewalk.jobs.inference.engines.transformers.pace import KEPT_TOKENS, PLAIN, TRIED, Pace
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.serving.serve.engine_command import CommandEngine
from tests.jobs.inference.engines.streams import COMPLETIONS, ask
from tests.jobs.tiny import tiny_model
from tests.patience import HANG_SECONDS

PROMPTS = [list(text.encode()) for text in ("a rope", "the strands", "in a long straight lane")]
WAYS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8},
    "biased": {"temperature": 0.5, "bias": {101: 4.0, 32: 2.0}},
    "endless": {"temperature": 0.0, "end": False},
    "cut": {"temperature": 0.8, "top_p": 0.9},  # drawn without guesses
    "told": {"temperature": 0.0, "logprobs": 2},
}
ENDS = frozenset({256})


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of random weights are never sure."""
    monkeypatch.setattr(guesses, "SURE", 0.0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(str(tiny_model(tmp_path_factory.mktemp("models") / "model")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(str(tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1, num_hidden_layers=1)))


class Counted:
    """A model that counts its passes."""

    def __init__(self, opened: OpenModel) -> None:
        self.model, self.passes = opened.model, 0
        self.handle = opened.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1


@pytest.fixture
def counted(opened: OpenModel) -> Iterator[Counted]:
    found = Counted(opened)
    yield found
    found.handle.remove()


def whole(opened: OpenModel, prompt: list[int], draft: Draft | None, **asked: Any) -> list[Any]:
    answer, found = Answer(opened.model, prompt, Sampling(max_tokens=30, seed=3, **asked), ENDS, draft=draft), list[Any]()
    while not found or found[-1].ended is None:
        found += answer.step()
    return found


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_the_same_whatever_a_draft_guesses(opened: OpenModel, other: OpenModel, way: str) -> None:
    for prompt in PROMPTS:
        plain = whole(opened, prompt, None, **WAYS[way])
        for guessing in (other, opened):
            assert whole(opened, prompt, Draft(guessing, 3), **WAYS[way]) == plain


@pytest.mark.parametrize("way", ["greedy", "drawn"])
def test_right_guesses_are_read_in_one_pass(opened: OpenModel, counted: Counted, way: str) -> None:
    copy = open_model(opened.name)  # whose passes are not counted
    plain = whole(opened, PROMPTS[0], None, **WAYS[way])
    assert counted.passes == len(plain)
    counted.passes = 0
    assert whole(opened, PROMPTS[0], Draft(copy, 3), **WAYS[way]) == plain
    assert counted.passes <= 2 + len(plain) / 4, "a pass for the prompt, then three guesses and a token of the model's own each"


def test_an_answer_that_another_process_has_begun_goes_on_with_guesses(opened: OpenModel, other: OpenModel) -> None:
    plain = whole(opened, PROMPTS[0], None, temperature=0.8)
    for begun in range(1, len(plain), 4):
        prompt = [*PROMPTS[0], *(drawn.token for drawn in plain[:begun])]
        assert whole(opened, prompt, Draft(other, 2), temperature=0.8, continued=begun) == plain[begun:]


def test_a_choice_that_rounding_could_turn_is_made_by_single_passes(
    opened: OpenModel, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = whole(opened, PROMPTS[1], None, temperature=0.0)
    monkeypatch.setattr(decoding, "token_noise", lambda dtype: 1e9)
    counted.passes = 0
    assert whole(opened, PROMPTS[1], Draft(open_model(opened.name), 3), temperature=0.0) == plain
    assert counted.passes <= 2 * len(plain) + 2, "after the first doubt nothing is guessed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 300}, "has other tokens"),
        ({"model_type": "mistral", "sliding_window": 8}, "cannot take back"),
    ],
)
def test_a_draft_that_cannot_guess_is_refused(opened: OpenModel, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    draft = Draft(open_model(str(tiny_model(tmp_path / "draft", **changes))), 3)
    with pytest.raises(ConfigError, match=words):
        draft.check(opened)


def test_a_draft_that_is_not_sure_guesses_nothing(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "SURE", 1.1)
    guesser = guesses.Guesser(Draft(opened, 3))
    assert guesser.ahead(PROMPTS[0], 3, lambda logits, place: int(logits.argmax()), ENDS) == []


def test_an_engine_that_takes_no_draft_says_so(tmp_path: Path) -> None:
    assert Capabilities().drafts is False
    options = EngineOptions(draft=tmp_path)
    with pytest.raises(ConfigError, match="engine command takes no draft"):
        EngineProcess.start(CommandEngine(["true"]), tmp_path, options, tmp_path / "log")


@pytest.mark.parametrize(("guessed", "better"), [(0.9, True), (1.1, False)])
def test_a_draft_is_asked_as_long_as_it_pays(guessed: float, better: bool) -> None:
    pace = Pace()
    for _ in range(TRIED):
        assert pace.guesses
        pace.took(guessed=True, tokens=3, seconds=3 * guessed)
    for _ in range(PLAIN):
        assert not pace.guesses
        pace.took(guessed=False, tokens=1, seconds=1.0)
    for _ in range(KEPT_TOKENS):
        assert pace.guesses is better
        pace.took(guessed=better, tokens=1, seconds=9.0)
    assert pace.guesses, "both are tried again"


def test_a_draft_that_does_not_pay_is_left_out_and_the_answer_stays(opened: OpenModel, other: OpenModel) -> None:
    draft, plain = Draft(other, 3), whole(opened, PROMPTS[0], None, temperature=0.8)
    for _ in range(3):
        assert whole(opened, PROMPTS[0], draft, temperature=0.8) == plain
    assert not draft.pace.guesses, "a draft of random weights is never right"


@pytest.mark.parametrize(
    "name",
    [
        "transformers",
        pytest.param(
            "llamacpp",
            marks=pytest.mark.soak("a GGUF of each model is written and loaded first; make test runs the reference engine"),
        ),
    ],
)
def test_engines_answer_with_a_draft_as_without(opened: OpenModel, other: OpenModel, tmp_path: Path, name: str) -> None:
    options = EngineOptions(threads=1, slots=2, name="tiny", draft=Path(other.name), draft_tokens=2, extra={"type": "F32"})
    with EngineProcess.start(find_engine(name), Path(opened.name), options, tmp_path / "log") as engine:
        engine.await_ready(HANG_SECONDS)
        bias = {str(token): -100 for token in range(128, 256)}
        body = {
            "model": "tiny",
            "prompt": PROMPTS,
            "temperature": 0,
            "max_tokens": 12,
            "return_token_ids": True,
            "logit_bias": bias,
        }
        found = [choice["token_ids"] for choice in ask(engine, COMPLETIONS, body).json()["choices"]]
    biased = {int(token): float(value) for token, value in bias.items()}
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        answer = Answer(opened.model, prompt, Sampling(max_tokens=12, temperature=0.0, bias=biased), ENDS)
        plain = [answer.step()[0] for _ in range(len(tokens))]
        assert [drawn.token for drawn in plain] == tokens
