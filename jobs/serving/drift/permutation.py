"""Permutation tests: exact p-values at any sample size, for any statistic."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# Maps sides [text, permutation] to one number per permutation; an entry is 1 / count for a text of the first side, -1 / count
# for a text of the second.
Statistic = Callable[[Floats], NDArray[np.floating]]

ENOUGH = 10  # sampling stops after this many extreme permutations: the p-value is not small
_FIRST_BATCH, _MAX_BATCH = 60, 1000  # permutations computed together
_ROUNDING = 1e-5  # relative; statistics closer than this count as equal


@dataclass(frozen=True, kw_only=True)
class PValue:
    """A p-value, the observed statistic, and the number of permutations behind it."""

    p: float
    observed: float
    permutations: int


def permutation_p(statistic: Statistic, sides: Floats, random: np.random.Generator, *, max_permutations: int) -> PValue:
    """Return the one-sided p-value of a statistic that is large if the sides differ.

    Sequential Monte Carlo of Besag and Clifford (1991): permutations are drawn until ten are as extreme as the observed one, and
    p is ten divided by their number; otherwise p is (extreme + 1) / (max_permutations + 1). Valid at any level, and cheap if
    there is no difference.
    """
    observed = float(statistic(sides[:, None])[0])
    threshold = observed - _ROUNDING * abs(observed)
    drawn, extreme, size = 0, 0, _FIRST_BATCH
    while drawn < max_permutations:
        values = statistic(_permute(sides, min(size, max_permutations - drawn), random))
        hits = np.flatnonzero(values >= threshold)
        if extreme + len(hits) >= ENOUGH:
            number = drawn + int(hits[ENOUGH - extreme - 1]) + 1
            return PValue(p=ENOUGH / number, observed=observed, permutations=number)
        drawn, extreme, size = drawn + len(values), extreme + len(hits), min(2 * size, _MAX_BATCH)
    return PValue(p=(extreme + 1) / (drawn + 1), observed=observed, permutations=drawn)


def sides_of(first: int, second: int) -> Floats:
    """Return the weights of the texts of two sides; a product with them is a difference of means."""
    return np.concatenate([np.full(first, 1 / first, np.float32), np.full(second, -1 / second, np.float32)])


def _permute(sides: Floats, count: int, random: np.random.Generator) -> Floats:
    return random.permuted(np.broadcast_to(sides[:, None], (len(sides), count)), axis=0)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Correct the p-values of several tests so that their combined false-alarm rate is that of one test (Holm, 1979)."""
    adjusted, running_max = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        running_max = max(running_max, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running_max
    return adjusted
