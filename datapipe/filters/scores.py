"""The filter `scores`: drop documents by scores of user-defined functions, such as toxicity. No scorer is built in."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.project import user_object
from ropewalk.cluster.section import Section
from ropewalk.datapipe.filters.filter import Filter, Verdict

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch

Scorer = Callable[[Sequence[str]], Sequence[float]]


class ScorerRule(Section):
    """A scoring function, and the scores that drop a document."""

    function: str = Field(
        pattern=r"^[\w.]+:\w+$",
        description="MODULE:FUNCTION that maps a list of texts to a list of numbers; it must be deterministic",
    )
    drop_above: float | None = Field(default=None, description="drop documents with a higher score")
    drop_below: float | None = Field(default=None, description="drop documents with a lower score")

    @model_validator(mode="after")
    def _drops_something(self) -> "ScorerRule":
        if self.drop_above is None and self.drop_below is None:
            raise ValueError("set drop_above or drop_below, or remove the scorer")
        return self

    @cached_property
    def scorer(self) -> Scorer:
        """The imported function. Raises ConfigError if it cannot be imported."""
        scorer: Scorer = user_object("scores", self.function)
        return scorer


class Scores(Filter):
    """Drop documents by scores of your own functions; the report shows false positives by group of people."""

    scorers: dict[str, ScorerRule] = Field(
        min_length=1, description="{NAME: {function: MODULE:FUNCTION, drop_above: 0.9}}; NAME is the recorded reason"
    )

    def judge(self, batch: "DocumentBatch") -> Verdict:
        texts = batch.texts
        reasons: list[str | None] = [None] * len(texts)
        for name, rule in self.scorers.items():
            for row, score in enumerate(_check_scores(rule.scorer(texts), len(texts), name)):
                above = rule.drop_above is not None and score > rule.drop_above
                below = rule.drop_below is not None and score < rule.drop_below
                if (above or below) and reasons[row] is None:
                    reasons[row] = name
        return Verdict.of(reasons)


def _check_scores(scores: Any, num_texts: int, name: str) -> list[float]:
    numbers = [float(score) for score in scores]
    if len(numbers) != num_texts or any(map(math.isnan, numbers)):
        raise DataError(f"scorer {name}: returned {len(numbers)} scores for {num_texts} texts, or NaN; fix the function")
    return numbers
