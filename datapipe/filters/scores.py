"""The filter `scores`: functions of the user's own that score texts, such as for toxicity. None comes with the program."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.datapipe.filters.filter import Filter, Verdict

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch

Scorer = Callable[[Sequence[str]], Sequence[float]]


class ScorerRule(Section):
    """A function from a list of texts to as many numbers, and which numbers drop a document."""

    function: str = Field(
        pattern=r"^[\w.]+:\w+$", description="MODULE:FUNCTION from a list of texts to a list of numbers; it must be deterministic"
    )
    drop_above: float | None = Field(default=None, description="drop a document of a higher score")
    drop_below: float | None = Field(default=None, description="drop a document of a lower score")

    @model_validator(mode="after")
    def _drops_something(self) -> "ScorerRule":
        if self.drop_above is None and self.drop_below is None:
            raise ValueError("set drop_above or drop_below, or take the scorer out")
        return self

    @cached_property
    def scorer(self) -> Scorer:
        """The function. Raises ConfigError where there is none."""
        module, _, name = self.function.partition(":")
        try:
            found: Scorer = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"scores: {self.function}: {error}; check the name, and that PYTHONPATH has its module") from None
        return found


class Scores(Filter):
    """Drop documents by the scores that functions of your own give them; the report shows how they treat groups of people."""

    scorers: dict[str, ScorerRule] = Field(
        min_length=1, description="{NAME: {function: MODULE:FUNCTION, drop_above: 0.9}}; NAME is the reason"
    )

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The name of the first scorer that drops a document."""
        texts = batch.texts
        reasons: list[str | None] = [None] * len(texts)
        for name, rule in self.scorers.items():
            for row, score in enumerate(_checked(rule.scorer(texts), len(texts), name)):
                above = rule.drop_above is not None and score > rule.drop_above
                below = rule.drop_below is not None and score < rule.drop_below
                if (above or below) and reasons[row] is None:
                    reasons[row] = name
        return Verdict.of(reasons)


def _checked(scores: Any, wanted: int, name: str) -> list[float]:
    numbers = [float(score) for score in scores]
    if len(numbers) != wanted or any(map(math.isnan, numbers)):
        raise DataError(f"scorer {name}: gave {len(numbers)} scores of {wanted} texts, or NaN; correct it")
    return numbers
