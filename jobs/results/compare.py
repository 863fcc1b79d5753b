"""Paired comparison of two models: mean difference, confidence interval, smallest detectable difference, winner."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ropewalk.jobs.results.gate import no_spread
from ropewalk.jobs.results.statistics import (
    LEVEL,
    bootstrap_interval,
    detectable_difference,
    group_sums,
    mean_error,
    mean_interval,
    permutation,
    t_p_value,
    t_quantile,
)

FEW_GROUPS = 30  # with fewer groups a bootstrap interval is too narrow; Student's is used
MOST_PAIRS = 100  # advice to collect more pairs than this would be useless
FEW_PERMUTATIONS = 6  # with fewer groups no permutation is rare enough; Student's interval decides alone


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean of paired differences (first minus second) with its evidence. A field is None if there are too few pairs."""

    difference: float | None = None
    standard_error: float | None = None
    interval: tuple[float, float] | None = None  # 95%
    p_value: float | None = None  # of the permutation test
    mid_p_value: float | None = None  # mid-p of the same test; used to decide, since p is conservative for binary items
    smallest_difference: float | None = None  # differences below this are not significant
    detectable_difference: float | None = None  # a true difference of this size is detected with 80% power
    n: int  # pairs
    groups: int  # number of independent groups

    @property
    def better(self) -> Literal["first", "second"] | None:
        """Return the side with the higher mean if interval, permutation test and smallest difference agree, else None.

        If all differences are equal, the interval has no width and the permutation test decides alone.
        """
        if self.difference is None or self.interval is None or self.mid_p_value is None or self.smallest_difference is None:
            return None
        skip_permutation = self.groups < FEW_PERMUTATIONS and not self.alike
        significant = skip_permutation or self.mid_p_value <= 1 - LEVEL
        large_enough = abs(self.difference) >= self.smallest_difference and significant
        if not large_enough or self.difference == 0 or self.interval[0] <= 0 <= self.interval[1]:
            return None
        return "first" if self.difference > 0 else "second"

    def p_of(self, side: Literal["first", "second"]) -> float | None:
        """Return the one-sided p-value of the hypothesis that this side is better, for corrections of multiple comparisons.

        The larger of the permutation test's mid-p and Student's p, because `better` requires both. None: too few pairs.
        """
        if self.difference is None or self.standard_error is None or self.mid_p_value is None:
            return None
        both = [] if self.alike else [t_p_value(self.difference / self.standard_error, self.groups)]
        if self.alike or self.groups >= FEW_PERMUTATIONS:
            both.append(self.mid_p_value)
        higher = (self.difference > 0) is (side == "first") and self.difference != 0
        return max(both) / 2 if higher else 1 - max(both) / 2

    @property
    def alike(self) -> bool:
        """True if all differences are equal up to rounding, so that their spread is unknown."""
        return self.difference is not None and no_spread(self.difference, self.standard_error)

    @property
    def pairs_needed(self) -> int | None:
        """Approximate number of pairs that would make this difference significant; None if it is 0, or above 100 pairs."""
        if not self.difference or not self.standard_error:
            return None
        deviation = self.standard_error * math.sqrt(self.groups)
        counts = range(self.groups + 1, MOST_PAIRS + 1)
        needed = (n for n in counts if t_quantile((1 + LEVEL) / 2, n) * deviation / math.sqrt(n) < abs(self.difference))
        return next(needed, None)

    def plain(self) -> dict[str, Any]:
        """Return the comparison as stored in results and files."""
        return {**vars(self), "better": self.better}


def compare_pairs(
    first: Sequence[float], second: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Comparison:
    """Compare two sides whose k-th values belong to the same item. Items with the same entry in `groups` are dependent."""
    assert len(first) == len(second)
    return judge([a - b for a, b in zip(first, second, strict=True)], groups=groups, seed=seed)


def judge(differences: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Comparison:
    """Build the comparison of paired differences."""
    n = len(differences)
    num_groups = len(group_sums(differences, groups)[0])
    error = mean_error(differences, groups)
    if error is None:
        mean = math.fsum(differences) / n if n else None
        return Comparison(difference=mean, n=n, groups=num_groups)
    permuted = permutation(differences, groups, seed=seed)
    few = num_groups < FEW_GROUPS
    interval = mean_interval(differences, groups) if few else bootstrap_interval(differences, groups, seed=seed)
    return Comparison(
        difference=math.fsum(differences) / n,
        standard_error=error,
        interval=interval,
        p_value=permuted.p if permuted else None,
        mid_p_value=permuted.mid_p if permuted else None,
        smallest_difference=t_quantile((1 + LEVEL) / 2, num_groups) * error,
        detectable_difference=detectable_difference(error, num_groups),
        n=n,
        groups=num_groups,
    )
