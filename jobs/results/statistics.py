"""Standard errors, confidence intervals and tests for items that may be grouped."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Sequence[Any]], float]

LEVEL = 0.95  # confidence level of every interval
POWER = 0.8  # statistical power of a detectable difference
MOST_RESAMPLES = 5000
_CELLS = 20_000_000  # items x resamples; above this, fewer resamples: their error is small compared with that of the items
_LEAST_RESAMPLES = 1000
_BATCH_CELLS = 2_000_000  # cells in memory at once


def mean_error(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> float | None:
    """Return the standard error of the mean, robust to correlation within groups; None for fewer than two groups.

    CR1 of Liang and Zeger (1986): the square root of G / (G - 1) * sum over groups of (sum of residuals)^2, divided by n.
    Without groups this is s / sqrt(n).
    """
    sums, counts = group_sums(values, groups)
    if len(sums) < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(math.sqrt(len(sums) / (len(sums) - 1) * float(residuals @ residuals)) / counts.sum())


def group_sums(values: Sequence[float] | Floats, groups: Sequence[Hashable] | None = None) -> tuple[Floats, Floats]:
    """Return the sum and the number of items per group in order of appearance; without groups each item is a group."""
    array = np.asarray(values, dtype=np.float64)
    if groups is None:
        return array, np.ones_like(array)
    assert len(groups) == len(array)
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    counts = np.bincount(index, minlength=len(numbers)).astype(np.float64)
    return np.bincount(index, weights=array, minlength=len(numbers)).astype(np.float64), counts


def t_quantile(probability: float, num_groups: int) -> float:
    """Return the quantile of Student's t for the mean of this many groups."""
    from scipy import special  # not `stats`, which takes a second to import

    return float(special.stdtrit(num_groups - 1, probability))


def t_p_value(t: float, num_groups: int) -> float:
    """Return the two-sided p-value of a mean of this many groups that is `t` standard errors away from 0."""
    from scipy import special

    return 2 * float(special.stdtr(num_groups - 1, -abs(t)))


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return Student's confidence interval of the mean, or None for fewer than two groups."""
    error = mean_error(values, groups)
    if error is None:
        return None
    sums, counts = group_sums(values, groups)
    mean, half_width = float(sums.sum() / counts.sum()), t_quantile((1 + level) / 2, len(sums)) * error
    return mean - half_width, mean + half_width


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean, resampling groups; None for fewer than two groups."""
    sums, counts = group_sums(values, groups)
    if len(sums) < 2:
        return None
    from scipy import stats

    resamples = num_resamples(len(sums))
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=resamples,
        batch=_batch(len(sums)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


class Permutation(NamedTuple):
    """Two-sided p-values of paired differences under random exchange of the sides."""

    p: float
    mid_p: float  # ties with the observed statistic count half; p is conservative if differences have few values


def permutation(differences: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int) -> Permutation | None:
    """Run a permutation test that flips whole groups (exact if there are few); None for fewer than two groups."""
    sums, _ = group_sums(differences, groups)
    if len(sums) < 2:
        return None
    sums = sums[sums != 0]  # groups without a difference are unaffected
    if len(sums) < 2:
        return Permutation(1.0, 1.0)  # at most two permutations, equally far from 0
    from scipy import stats

    result = stats.permutation_test(
        (sums,),
        lambda x, axis=-1: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples(len(sums)),
        batch=_batch(len(sums)),
        rng=np.random.default_rng(seed),
    )
    distance, observed = np.abs(result.null_distribution), abs(float(result.statistic))
    tied = float(np.isclose(distance, observed, rtol=1e-9, atol=0).mean())
    return Permutation(float(result.pvalue), float((distance > observed * (1 + 1e-9)).mean()) + tied / 2)


def bootstrap_error(
    items: Sequence[Any],
    statistic: Statistic,
    *,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int,
    num: int = 200,
) -> float | None:
    """Return the bootstrap standard error of a statistic, resampling groups.

    With `strata` groups are resampled within each stratum; a group belongs to one stratum. None if a stratum has fewer than
    two groups.
    """
    numbers: dict[Hashable, dict[Hashable, list[int]]] = {}
    for index in range(len(items)):
        stratum = numbers.setdefault(strata[index] if strata is not None else None, {})
        stratum.setdefault(groups[index] if groups is not None else index, []).append(index)
    members = [list(stratum.values()) for stratum in numbers.values()]
    if not members or min(map(len, members)) < 2:
        return None
    random = np.random.default_rng(seed)
    resamples = ([part[m] for part in members for m in random.integers(len(part), size=len(part))] for _ in range(num))
    values = [float(statistic([items[i] for group in draw for i in group])) for draw in resamples]
    finite = [value for value in values if math.isfinite(value)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def detectable_difference(standard_error: float, num_groups: int, *, level: float = LEVEL, power: float = POWER) -> float:
    """Return the true difference that a two-sided test at 1 - `level` detects with this power."""
    return (t_quantile((1 + level) / 2, num_groups) + t_quantile(power, num_groups)) * standard_error


def num_resamples(num_groups: int) -> int:
    """Return the number of resamples for this many groups."""
    return int(min(MOST_RESAMPLES, max(_LEAST_RESAMPLES, _CELLS // max(1, num_groups))))


def _batch(num_groups: int) -> int:
    return max(1, _BATCH_CELLS // num_groups)
