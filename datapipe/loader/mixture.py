"""Mixture of sources: the source of the k-th sample of a run, and its index within that source."""

import math
from collections.abc import Sequence

import numpy as np

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.loader.order import Indices, permute

BLOCK = 10_000  # samples; every source has its exact share of each block

_SALT = 0x6D69_7874  # keeps the order of blocks apart from that of samples


def quotas(weights: Sequence[float], block: int = BLOCK) -> Indices:
    """Return the samples of each source per block, by largest remainder. Raises ConfigError unless all weights are above 0."""
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(f"weights of the data must be numbers above 0, not {list(weights)}")
    shares = np.asarray(weights, np.float64) / math.fsum(weights) * block
    counts = np.floor(shares).astype(np.int64)
    # stable, so that the order of the sources decides between equal remainders
    largest = np.argsort(-(shares - counts), kind="stable")
    counts[largest[: block - int(counts.sum())]] += 1
    if not counts.all():
        lost = int(np.argmin(counts))
        least = math.fsum(weights) / block
        raise ConfigError(f"weight {weights[lost]} of data source {lost} is too small to be sampled; the minimum is {least:.3g}")
    return counts


def locate(positions: Indices, counts: Indices, seed: int) -> tuple[Indices, Indices]:
    """Return (source, index within the source) of samples k ≥ 0; a source's indices increase without gaps over the blocks."""
    block = int(counts.sum())
    bounds = np.cumsum(counts)
    numbers, offsets = np.divmod(positions, block)
    slots = permute(offsets, block, seed ^ _SALT, numbers)
    sources = np.searchsorted(bounds, slots, side="right")
    within = slots - (bounds - counts)[sources]
    return sources, numbers * counts[sources] + within
