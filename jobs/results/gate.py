"""Gates: conditions on scores, and a message with value and interval for each condition that fails."""

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from ropewalk.cluster.errors import ConfigError

if TYPE_CHECKING:  # it needs numpy, and the keys of jobs are read on laptops that lack it
    from ropewalk.jobs.results.score import Score

_CONDITION = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:by\s+(\d+\.?\d*|\.\d+)\s*se)?\s*")
_HOLDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
NORMAL_95 = 1.96
ROUNDING = 1e-9  # a standard error below this share of the mean is floating-point noise


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A bound on a score; with `errors`, the score must stay within it by that many standard errors."""

    relation: str
    bound: float
    errors: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `<= 0.6` or `>= 0.55 by 2se`. Raises ValueError."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a condition; examples: '<= 0.6', '== 0', '>= 0.55 by 2se'")
        if match[1] == "==" and match[3]:
            raise ValueError(f"{text!r}: a condition with == cannot have `by`; use <= or >=")
        return cls(relation=match[1], bound=float(match[2]), errors=float(match[3] or 0))

    def holds(self, score: "Score") -> bool:
        """Return True if the score meets the condition. NaN, or a missing standard error that `by` needs, fails it."""
        if not math.isfinite(score.value):
            return False
        if not self.errors:
            return bool(_HOLDS[self.relation](score.value, self.bound))
        if (interval := interval_of(score, self.errors)) is None:
            return False
        return bool(_HOLDS[self.relation](interval[1 if self.relation.startswith("<") else 0], self.bound))


def no_spread(mean: float, standard_error: float | None) -> bool:
    """Return True if a standard error is 0 up to rounding of the mean."""
    return standard_error is not None and standard_error <= ROUNDING * abs(mean)


def interval_of(score: "Score", errors: float) -> tuple[float, float] | None:
    """Return the interval of `errors` standard errors around a score, or None if the items do not determine one.

    Equal items have a standard error of 0, which does not mean certainty. If all are 0 or all are 1, the interval is Wilson's
    (1927). Other equal values lie on one side of a bound by chance with probability 1/2 each; there must be so many of them
    that this is rarer than `errors` standard errors of the normal distribution.
    """
    value, error = score.value, score.standard_error
    if error is None or not math.isfinite(error):
        return None
    if not no_spread(value, error):
        return value - errors * error, value + errors * error
    if value in (0.0, 1.0):
        width = errors**2 / (score.n + errors**2)
        return (0.0, width) if value == 0 else (1 - width, 1.0)
    tail = math.erfc(errors / math.sqrt(2)) / 2
    return (value, value) if score.n * math.log(2) >= -math.log(tail) else None


def _check(text: Any) -> Any:
    Condition.parse(str(text))
    return text


# a condition in a job file, validated at submission
ConditionText = Annotated[str, BeforeValidator(_check)]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A failed condition with the score's value and interval, and a message."""

    name: str
    require: str
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None  # 95%
    n: int
    message: str

    def plain(self) -> dict[str, Any]:
        """Return the condition as stored in results, where its message is called `words`."""
        values = dict(vars(self))
        return {**values, "words": values.pop("message")}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Outcome of all conditions."""

    passed: bool
    failed: tuple[Failed, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)  # every condition with its score

    def plain(self) -> dict[str, Any]:
        """Return the gate as stored in results: {passed, failed: [...]}."""
        return {"passed": self.passed, "failed": [condition.plain() for condition in self.failed]}

    @property
    def words(self) -> str:
        """Messages of all failed conditions, in one line."""
        return "; ".join(condition.message for condition in self.failed)


def gate(require: Mapping[str, str], scores: Mapping[str, "Score"]) -> Gate:
    """Check scores against conditions; a condition on a missing score fails."""
    failed, figures = [], {}
    for name, text in require.items():
        score = scores.get(name)
        figures[name] = {"require": text, **(score.plain() if score is not None else {"value": None, "n": 0})}
        if score is None or not Condition.parse(text).holds(score):
            failed.append(_failed(name, text, score))
    return Gate(passed=not failed, failed=tuple(failed), figures=figures)


def check_names(require: Iterable[str], available: Iterable[str]) -> None:
    """Raise ConfigError for a condition on a score that the job does not produce."""
    names = list(available)
    for name in require:
        if name not in names:
            raise ConfigError(f"require: unknown score {name!r}; scores: {', '.join(names)}")


def _failed(name: str, text: str, score: "Score | None") -> Failed:
    if score is None:
        message = f"{name}: score missing, must be {text}"
        return Failed(name=name, require=text, value=None, standard_error=None, interval=None, n=0, message=message)
    plain, error, interval = score.plain(), score.standard_error, None
    message = f"{name} is {score.value:.4g}"
    if error is None or not math.isfinite(error) or not math.isfinite(score.value):
        message += f" (n = {score.n}, no standard error)"
    elif (interval := interval_of(score, NORMAL_95)) is None:
        message += f" (all items equal and too few to decide, n = {score.n})"
    else:
        spread = ("", "all items equal; ") if no_spread(score.value, error) else (f" ± {error:.2g}", "")
        message += f"{spread[0]} ({spread[1]}95% interval {interval[0]:.4g} to {interval[1]:.4g}, n = {score.n})"
    return Failed(
        name=name,
        require=text,
        value=plain["value"],
        standard_error=plain["standard_error"],
        interval=interval,
        n=score.n,
        message=f"{message}, must be {text}",
    )
