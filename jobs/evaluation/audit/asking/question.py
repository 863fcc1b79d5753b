"""What a model is asked, and what is written down as its answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request
from ropewalk.jobs.results.score import Score

Answer = Mapping[str, Any]  # plain values: a line of the ledger


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """How likely are these continuations? Answered by {values, tokens, greedy}, a list each, in their order."""

    key: str
    requests: tuple[Request, ...]

    @property
    def cost(self) -> int:
        """Tokens that are computed."""
        return sum(len(one.context) + len(one.continuation) for one in self.requests)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What does the model write after this prompt? Answered by {text, ended}; drawn from the run's seed and `number`."""

    key: str
    prompt: tuple[int, ...]
    sampling: Sampling
    number: int

    @property
    def cost(self) -> int:
        """Tokens that are computed, of which each new one takes a pass of its own."""
        return len(self.prompt) + 8 * self.sampling.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class Task:
    """Work without a model, such as the search of one shard; answered by what `work` returns."""

    key: str
    work: Callable[[], dict[str, Any]]
    cost: int


Question = Likelihoods | Writing | Task


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a measure found."""

    scores: dict[str, Score]  # by name; `suite/metric` below a suite
    items: list[dict[str, Any]]  # each question's outcome, by `key`: {measure, key, value, group, ...}
    tables: dict[str, list[dict[str, Any]]]  # for the report, by title
    notes: list[str]  # warnings that the report must not leave out
    plots: dict[str, Any]  # values that the report draws, by kind


class Measure(Protocol):
    """One kind of audit. Its questions are a pure function of configuration and model."""

    def score_names(self) -> list[str]:
        """Every score that `judge` will give, so that a gate on another one is refused at once."""
        ...

    def questions(self, opened: OpenModel) -> list[Question]:
        """All that the model is asked. Raises DataError for an item that it cannot be asked."""
        ...

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """The scores by all answers; what was too long for the model to see has none, and is left out."""
        ...
