"""A gate: conditions on scores, each met or named with its figure and interval."""

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.results.compare import no_spread
from ropewalk.jobs.results.score import Score

_CONDITION = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:by\s+(\d+\.?\d*|\.\d+)\s*se)?\s*")
_HOLDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A bound that a score must keep; with `errors`, by that many standard errors on the safe side."""

    relation: str
    bound: float
    errors: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `<= 0.6` or `>= 0.55 by 2se`. Raises ValueError."""
        found = _CONDITION.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is no condition; write one such as '<= 0.6', '== 0' or '>= 0.55 by 2se'")
        if found[1] == "==" and found[3]:
            raise ValueError(f"{text!r}: a number cannot be equal by so many standard errors; use <= or >= with `by`")
        return cls(relation=found[1], bound=float(found[2]), errors=float(found[3] or 0))

    def holds(self, score: Score) -> bool:
        """Whether the score keeps the bound; one that is no number, or lacks the evidence that is asked for, does not."""
        if not math.isfinite(score.value):
            return False
        if not self.errors:
            return bool(_HOLDS[self.relation](score.value, self.bound))
        if (interval := interval_of(score, self.errors)) is None:
            return False
        return bool(_HOLDS[self.relation](interval[1 if self.relation.startswith("<") else 0], self.bound))


def interval_of(score: Score, errors: float) -> tuple[float, float] | None:
    """So many standard errors around a score; None where there is none, or where it shows nothing.

    Items that are all alike have a standard error of 0, which is no certainty. Where all are 0 or all are 1 the interval is
    Wilson's (1927). Others are no shares: each lies on its side of a bound by chance half the time, and they must be so many
    that this is rarer than what lies beyond so many standard errors of the normal distribution.
    """
    value, error = score.value, score.standard_error
    if error is None or not math.isfinite(error):
        return None
    if not no_spread(value, error):
        return value - errors * error, value + errors * error
    if value in (0.0, 1.0):
        reach = errors**2 / (score.n + errors**2)
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    beyond = math.erfc(errors / math.sqrt(2)) / 2
    return (value, value) if score.n * math.log(2) >= -math.log(beyond) else None


def _check(text: str) -> str:
    Condition.parse(text)
    return text


# A condition as a job file has it, checked at submission.
ConditionText = Annotated[str, AfterValidator(_check)]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A condition that was not met: its figure, interval, and words."""

    name: str
    require: str
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None  # 95%
    n: int
    words: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What became of all conditions."""

    passed: bool
    failed: tuple[Failed, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)  # each condition and its score, whether met or not

    def plain(self) -> dict[str, Any]:
        """The gate as results hold it: {passed, failed: [...]}."""
        return {"passed": self.passed, "failed": [vars(each) for each in self.failed]}

    @property
    def words(self) -> str:
        """Every failed condition with its figure and interval."""
        return "; ".join(each.words for each in self.failed)


def gate(require: Mapping[str, str], scores: Mapping[str, Score]) -> Gate:
    """Judge scores by their conditions; a condition on a score that is not there has failed."""
    failed, figures = [], {}
    for name, text in require.items():
        score = scores.get(name)
        figures[name] = {"require": text, **(score.plain() if score is not None else {"value": None, "n": 0})}
        if score is None or not Condition.parse(text).holds(score):
            failed.append(_failed(name, text, score))
    return Gate(passed=not failed, failed=tuple(failed), figures=figures)


def check_names(require: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for a condition on a score that will not be there."""
    names = list(known)
    for name in require:
        if name not in names:
            raise ConfigError(f"require: there will be no score {name!r}; scores: {', '.join(names)}")


def _failed(name: str, text: str, score: Score | None) -> Failed:
    if score is None:
        words = f"{name}: there is no such score, and it must be {text}"
        return Failed(name=name, require=text, value=None, standard_error=None, interval=None, n=0, words=words)
    plain, error, interval = score.plain(), score.standard_error, None
    told = f"{name} is {score.value:.4g}"
    if error is None or not math.isfinite(error) or not math.isfinite(score.value):
        told += f" (n = {score.n}, no standard error)"
    elif (interval := interval_of(score, NORMAL_95)) is None:
        told += f" (all items alike, too few to tell, n = {score.n})"
    else:
        spread = ("", "all items alike; ") if no_spread(score.value, error) else (f" ± {error:.2g}", "")
        told += f"{spread[0]} ({spread[1]}95% interval {interval[0]:.4g} to {interval[1]:.4g}, n = {score.n})"
    return Failed(
        name=name,
        require=text,
        value=plain["value"],
        standard_error=plain["standard_error"],
        interval=interval,
        n=score.n,
        words=f"{told}, and must be {text}",
    )
