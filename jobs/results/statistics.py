"""Standard errors, intervals and tests of items that may come in groups; all that scores and comparisons are judged by."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Sequence[Any]], float]

LEVEL = 0.95  # of every interval
POWER = 0.8  # with which a detectable difference is detected
MOST_RESAMPLES = 5000
_CELLS = 20_000_000  # items x resamples, beyond which there are fewer resamples: their error is small against that of the items
_LEAST_RESAMPLES = 1000
_BATCH_CELLS = 2_000_000  # that are held in memory at once


def mean_error(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> float | None:
    """The standard error of the mean of items, robust to items of one group being alike. None for fewer than two groups.

    CR1 of Liang and Zeger (1986): the square root of G / (G - 1) * sum over groups of (sum of residuals)^2, over n. Without
    groups that is s / sqrt(n).
    """
    sums, counts = group_sums(values, groups)
    if len(sums) < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(math.sqrt(len(sums) / (len(sums) - 1) * float(residuals @ residuals)) / counts.sum())


def group_sums(values: Sequence[float] | Floats, groups: Sequence[Hashable] | None = None) -> tuple[Floats, Floats]:
    """The sum and the number of the items of each group, by first appearance; without groups each item is one."""
    array = np.asarray(values, dtype=np.float64)
    if groups is None:
        return array, np.ones_like(array)
    assert len(groups) == len(array)
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    counts = np.bincount(index, minlength=len(numbers)).astype(np.float64)
    return np.bincount(index, weights=array, minlength=len(numbers)).astype(np.float64), counts


def t_quantile(probability: float, num_groups: int) -> float:
    """The quantile of Student's t for the mean of this many groups."""
    from scipy import stats  # half a second, which whoever only reads a configuration does not need

    return float(stats.t.ppf(probability, num_groups - 1))


def t_p_value(t: float, num_groups: int) -> float:
    """The two-sided p-value of a mean of this many groups that is `t` standard errors away from 0."""
    from scipy import stats

    return 2 * float(stats.t.sf(abs(t), num_groups - 1))


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, level: float = LEVEL
) -> tuple[float, float] | None:
    """Student's interval of the mean of items. None for fewer than two groups."""
    error = mean_error(values, groups)
    if error is None:
        return None
    sums, counts = group_sums(values, groups)
    mean, reach = float(sums.sum() / counts.sum()), t_quantile((1 + level) / 2, len(sums)) * error
    return mean - reach, mean + reach


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int, level: float = LEVEL
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean of items, whole groups drawn. None for fewer than two groups."""
    sums, counts = group_sums(values, groups)
    if len(sums) < 2:
        return None
    from scipy import stats

    resamples = num_resamples(len(sums))
    found = stats.bootstrap(
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
    return float(found.low), float(found.high)


class Permutation(NamedTuple):
    """Two-sided p-values of paired differences under exchange of the two sides."""

    p: float
    mid_p: float  # arrangements as far from 0 as what was seen count half: p is too careful where differences have few values


def permutation(differences: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int) -> Permutation | None:
    """Exchange the sides of whole groups at random, or in every way where groups are few. None for fewer than two groups."""
    sums, _ = group_sums(differences, groups)
    if len(sums) < 2:
        return None
    sums = sums[sums != 0]  # what is equal on both sides stays equal
    if len(sums) < 2:
        return Permutation(1.0, 1.0)  # at most two arrangements, equally far from 0
    from scipy import stats

    found = stats.permutation_test(
        (sums,),
        lambda x, axis=-1: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples(len(sums)),
        batch=_batch(len(sums)),
        rng=np.random.default_rng(seed),
    )
    distance, seen = np.abs(found.null_distribution), abs(float(found.statistic))
    tied = float(np.isclose(distance, seen, rtol=1e-9, atol=0).mean())
    return Permutation(float(found.pvalue), float((distance > seen * (1 + 1e-9)).mean()) + tied / 2)


def bootstrap_error(
    items: Sequence[Any],
    statistic: Statistic,
    *,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int,
    num: int = 200,
) -> float | None:
    """The standard error of any statistic of items, bootstrapped over groups; with `strata`, of which a group has one, within
    each of these, so that every resample has as many groups of each. None for fewer than two groups, of any stratum.
    """
    numbers: dict[Hashable, dict[Hashable, list[int]]] = {}
    for index in range(len(items)):
        stratum = numbers.setdefault(strata[index] if strata is not None else None, {})
        stratum.setdefault(groups[index] if groups is not None else index, []).append(index)
    members = [list(stratum.values()) for stratum in numbers.values()]
    if not members or min(map(len, members)) < 2:
        return None
    random = np.random.default_rng(seed)
    drawn = ([part[m] for part in members for m in random.integers(len(part), size=len(part))] for _ in range(num))
    values = [float(statistic([items[i] for group in draw for i in group])) for draw in drawn]
    finite = [value for value in values if math.isfinite(value)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def detectable_difference(standard_error: float, num_groups: int, *, level: float = LEVEL, power: float = POWER) -> float:
    """The true difference that a two-sided test at 1 - `level` would find with this power."""
    return (t_quantile((1 + level) / 2, num_groups) + t_quantile(power, num_groups)) * standard_error


def num_resamples(num_groups: int) -> int:
    """How many resamples are drawn for this many groups."""
    return int(min(MOST_RESAMPLES, max(_LEAST_RESAMPLES, _CELLS // max(1, num_groups))))


def _batch(num_groups: int) -> int:
    return max(1, _BATCH_CELLS // num_groups)
