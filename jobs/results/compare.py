"""Two sides compared pair by pair: the difference, its interval, the smallest one that shows, and who is better."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

FEW_GROUPS = 30  # below these a bootstrap's interval is too narrow, and Student's is taken
MOST_PAIRS = 100  # to ask for more than these is no advice
FEW_PERMUTATIONS = 6  # below these groups no arrangement is rare enough, and Student's interval decides alone
ROUNDING = 1e-9  # a smaller standard error, of the mean, is that of floating point


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The mean of paired differences, first side minus second, and all that it is judged by. None: too few pairs to tell."""

    difference: float | None
    standard_error: float | None
    interval: tuple[float, float] | None  # 95%
    p_value: float | None  # of the permutation test
    mid_p_value: float | None  # of the same; decides, since p is too careful where items are right or wrong
    smallest_difference: float | None  # a smaller one than this is not told from none
    detectable_difference: float | None  # a true one of this size is found with a power of 80%
    n: int  # pairs
    groups: int  # that are independent of each other

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The side with the higher mean, where interval, permutation and the smallest difference all say so; None: not shown.

        Differences that are all equal have an interval without width, which says nothing: the permutation decides alone.
        """
        if self.difference is None or self.interval is None or self.mid_p_value is None or self.smallest_difference is None:
            return None
        student = self.groups < FEW_PERMUTATIONS and not self.alike
        arranged = student or self.mid_p_value <= 1 - LEVEL
        shown = abs(self.difference) >= self.smallest_difference and arranged
        if not shown or self.difference == 0 or self.interval[0] <= 0 <= self.interval[1]:
            return None
        return "first" if self.difference > 0 else "second"

    def p_of(self, side: Literal["first", "second"]) -> float | None:
        """The one-sided p-value of this side's mean being the higher one, so that several comparisons can be corrected together.

        The larger one of those of the permutation (mid-p) and of Student's t, since `better` asks both. None: too few pairs.
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
        """Whether all differences are equal, up to rounding, so that they tell nothing of their spread."""
        return self.difference is not None and no_spread(self.difference, self.standard_error)

    @property
    def pairs_needed(self) -> int | None:
        """About how many independent pairs would show a difference of this size; None: none is seen, or more than 100."""
        if not self.difference or not self.standard_error:
            return None
        deviation = self.standard_error * math.sqrt(self.groups)
        counts = range(self.groups + 1, MOST_PAIRS + 1)
        needed = (n for n in counts if t_quantile((1 + LEVEL) / 2, n) * deviation / math.sqrt(n) < abs(self.difference))
        return next(needed, None)

    def plain(self) -> dict[str, Any]:
        """The comparison as results and files hold it."""
        return {**vars(self), "better": self.better}


def no_spread(mean: float, standard_error: float | None) -> bool:
    """Whether a standard error is 0, up to rounding of the mean."""
    return standard_error is not None and standard_error <= ROUNDING * abs(mean)


def compare_pairs(
    first: Sequence[float], second: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Comparison:
    """Compare two sides, the k-th value of each belonging to the same item; `groups` says which items are not independent."""
    assert len(first) == len(second)
    return judge([a - b for a, b in zip(first, second, strict=True)], groups=groups, seed=seed)


def judge(differences: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Comparison:
    """Judge paired differences by themselves."""
    n = len(differences)
    num_groups = len(group_sums(differences, groups)[0])
    error = mean_error(differences, groups)
    if error is None:
        mean = math.fsum(differences) / n if n else None
        return Comparison(
            difference=mean,
            standard_error=None,
            interval=None,
            p_value=None,
            mid_p_value=None,
            smallest_difference=None,
            detectable_difference=None,
            n=n,
            groups=num_groups,
        )
    arranged = permutation(differences, groups, seed=seed)
    few = num_groups < FEW_GROUPS
    interval = mean_interval(differences, groups) if few else bootstrap_interval(differences, groups, seed=seed)
    return Comparison(
        difference=math.fsum(differences) / n,
        standard_error=error,
        interval=interval,
        p_value=arranged.p if arranged else None,
        mid_p_value=arranged.mid_p if arranged else None,
        smallest_difference=t_quantile((1 + LEVEL) / 2, num_groups) * error,
        detectable_difference=detectable_difference(error, num_groups),
        n=n,
        groups=num_groups,
    )
