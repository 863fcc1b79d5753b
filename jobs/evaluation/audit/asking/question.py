"""Questions to a model, and the recorded form of their answers."""

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
    """A question for the likelihoods of continuations. Its answer is {values, tokens, greedy}, a list each, in their order."""

    key: str
    requests: tuple[Request, ...]

    @property
    def cost(self) -> int:
        """Number of tokens to compute."""
        return sum(len(request.context) + len(request.continuation) for request in self.requests)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A question for generated text. Its answer is {text, ended}; the text is drawn from the run's seed and `number`."""

    key: str
    prompt: tuple[int, ...]
    sampling: Sampling
    number: int

    @property
    def cost(self) -> int:
        """Number of tokens to compute; each new token needs a pass of its own."""
        return len(self.prompt) + 8 * self.sampling.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class Task:
    """Work without the model, such as the search of one shard; its answer is the result of `work`."""

    key: str
    work: Callable[[], dict[str, Any]]
    cost: int


Question = Likelihoods | Writing | Task


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Results of a measure."""

    scores: dict[str, Score]  # by name; `suite/metric` below a suite
    items: list[dict[str, Any]]  # each question's outcome, by `key`: {measure, key, value, group, ...}
    tables: dict[str, list[dict[str, Any]]]  # for the report, by title
    notes: list[str]  # warnings that the report must not leave out
    plots: dict[str, Any]  # values for the plots of the report, by kind


class Measure(Protocol):
    """A kind of audit. Its questions are a pure function of configuration and model."""

    def score_names(self) -> list[str]:
        """Return all names of scores that `judge` will give, so that a gate on another one is refused early."""
        ...

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return all questions. Raises DataError for an item that cannot be asked."""
        ...

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the scores from all answers; questions that were too long have no answer and are left out."""
        ...
