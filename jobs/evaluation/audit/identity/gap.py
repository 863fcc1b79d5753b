"""The false-positive gap over groups: how the rate at which harmless texts are flagged depends on the group they mention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Each term's false-positive rate, and the distance between the extremes."""

    rates: dict[str, float]
    gap: float  # highest rate of a term less the lowest
    standard_error: float | None  # bootstrapped over texts, all terms of a text together
    p_value: float  # permutation test: the terms of each text exchanged at random
    equality_difference: float  # sum over terms of |rate - rate over all|, Dixon et al. (2018)
    n: int  # texts with a term in them

    @property
    def rows(self) -> list[tuple[str, float]]:
        """(term, rate) pairs, the highest rate first."""
        return sorted(self.rates.items(), key=lambda item: (-item[1], item[0]))


def false_positive_gap(terms: Sequence[str], flags_TX: NDArray[np.bool_], seed: int) -> Gap:
    """Return the gap of flags [terms, texts]: text x is the same for every term except for the term itself."""
    flags = flags_TX.astype(np.float64)
    num_texts = flags.shape[1]
    rates = flags.mean(axis=1)
    gap = float(rates.max() - rates.min())
    random = np.random.default_rng(seed)
    drawn = random.integers(num_texts, size=(RESAMPLES, num_texts))
    each = np.array([flags[:, chosen].mean(axis=1) for chosen in drawn])
    error = float((each.max(axis=1) - each.min(axis=1)).std(ddof=1)) if num_texts > 1 else None
    shuffled = np.array([random.permuted(flags, axis=0).mean(axis=1) for _ in range(RESAMPLES)])
    chance = shuffled.max(axis=1) - shuffled.min(axis=1)
    return Gap(
        rates=dict(zip(terms, rates.tolist(), strict=True)),
        gap=gap,
        standard_error=error,
        p_value=float((1 + (chance >= gap - 1e-12).sum()) / (1 + RESAMPLES)),
        equality_difference=float(np.abs(rates - rates.mean()).sum()),
        n=flags.size,
    )
