"""P-values by rearranging which text is of which side: exact at any sample size, whatever the statistic."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# of sides [text, arrangement] (1 / count where a text is of the first side, -1 / count of the other) one number an arrangement
Statistic = Callable[[Floats], NDArray[np.floating]]

ENOUGH = 10  # arrangements that are as extreme, after which no more are needed: the p-value is far from small
_FIRST, _LARGEST = 60, 1000  # arrangements at a time
_ROUNDING = 1e-5  # relative; statistics nearer than this are equal


@dataclass(frozen=True, kw_only=True)
class PValue:
    """A p-value, what was seen, and the arrangements that it stands on."""

    p: float
    observed: float
    arrangements: int


def permutation_p(statistic: Statistic, sides: Floats, random: np.random.Generator, *, most: int) -> PValue:
    """The one-sided p-value of a statistic that is large where the sides differ.

    Sequential Monte Carlo of Besag and Clifford (1991): arrangements are drawn until ten are as extreme as what was seen, when
    p is ten over those drawn; else it is (extreme + 1) / (most + 1). Valid at any level, and cheap where there is no difference.
    """
    observed = float(statistic(sides[:, None])[0])
    threshold = observed - _ROUNDING * abs(observed)
    drawn, extreme, size = 0, 0, _FIRST
    while drawn < most:
        values = statistic(_arranged(sides, min(size, most - drawn), random))
        hits = np.flatnonzero(values >= threshold)
        if extreme + len(hits) >= ENOUGH:
            number = drawn + int(hits[ENOUGH - extreme - 1]) + 1
            return PValue(p=ENOUGH / number, observed=observed, arrangements=number)
        drawn, extreme, size = drawn + len(values), extreme + len(hits), min(2 * size, _LARGEST)
    return PValue(p=(extreme + 1) / (drawn + 1), observed=observed, arrangements=drawn)


def sides_of(first: int, second: int) -> Floats:
    """The weights of texts of two sides: a statistic's product with them is a difference of means."""
    return np.concatenate([np.full(first, 1 / first, np.float32), np.full(second, -1 / second, np.float32)])


def _arranged(sides: Floats, count: int, random: np.random.Generator) -> Floats:
    return random.permuted(np.broadcast_to(sides[:, None], (len(sides), count)), axis=0)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """P-values of several tests, corrected so that any false alarm among them has the rate of one test: Holm (1979)."""
    adjusted, least = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = least
    return adjusted
