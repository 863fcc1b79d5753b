"""Whether one configuration is better than another, or only luckier: paired over the seeds that both were run with."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, 97.5%, for 1, 2, ... 30 degrees of freedom; beyond them the last one, which is on the careful side
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
MOST_SEEDS = 100  # to ask for more than these is no advice


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds."""

    mean: float | None
    standard_error: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much better one is than the other, in the metric's own unit; positive: better."""

    difference: float | None
    standard_error: float | None
    interval: tuple[float, float] | None  # 95%
    n: int  # seeds that both have finished

    @property
    def real(self) -> bool | None:
        """Whether the interval lies on the good side of 0; None where there are too few seeds to tell."""
        return None if self.interval is None else self.interval[0] > 0

    @property
    def reversed(self) -> bool:
        """Whether the interval lies on the bad side of 0."""
        return self.interval is not None and self.interval[1] < 0

    @property
    def seeds_needed(self) -> int | None:
        """About how many seeds would show a difference of this size; None: more than is sensible."""
        if not self.difference or not self.standard_error:
            return None
        deviation = self.standard_error * math.sqrt(self.n)
        counts = range(self.n + 1, MOST_SEEDS + 1)
        return next((n for n in counts if t_value(n) * deviation / math.sqrt(n) < abs(self.difference)), None)


def t_value(n: int) -> float:
    """Half the width of a 95% interval over n values, in standard errors."""
    return _T[min(n - 1, len(_T)) - 1]


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and its standard error; the latter needs two values."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Mean(mean=statistics.fmean(values) if values else None, standard_error=error, n=n)


def compare(best: Mapping[int, float], other: Mapping[int, float], mode: str) -> Comparison:
    """Compare values by seed; only seeds that both have count, since one seed gives both the same data order."""
    sign = 1.0 if mode == "max" else -1.0
    gains = [sign * (best[seed] - other[seed]) for seed in sorted(best.keys() & other.keys())]
    found = mean_of(gains)
    interval = None
    if found.mean is not None and found.standard_error is not None:
        reach = t_value(found.n) * found.standard_error
        interval = (found.mean - reach, found.mean + reach)
    return Comparison(difference=found.mean, standard_error=found.standard_error, interval=interval, n=found.n)
