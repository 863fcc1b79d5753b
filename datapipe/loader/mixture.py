"""The mixture of sources: which source the k-th sample of a run comes from, and which of its samples it is."""

import math
from collections.abc import Sequence

import numpy as np

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.loader.order import Indices, permute

BLOCK = 10_000  # samples; within each block every source has its exact share

_SALT = 0x6D69_7874  # keeps the order of blocks apart from that of samples


def quotas(weights: Sequence[float], block: int = BLOCK) -> Indices:
    """Samples of each source in a block, by largest remainder. Raises ConfigError for weights that are not numbers above 0."""
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(f"weights of the data must be numbers above 0, are {list(weights)}")
    shares = np.asarray(weights, np.float64) / math.fsum(weights) * block
    counts = np.floor(shares).astype(np.int64)
    # stable, so that equal remainders are settled by the order of the sources
    largest = np.argsort(-(shares - counts), kind="stable")
    counts[largest[: block - int(counts.sum())]] += 1
    if not counts.all():
        lost = int(np.argmin(counts))
        least = math.fsum(weights) / block
        raise ConfigError(f"weight {weights[lost]} of data source {lost} is too small to be sampled; the least is {least:.3g}")
    return counts


def locate(positions: Indices, counts: Indices, seed: int) -> tuple[Indices, Indices]:
    """(source, index within the source) of samples k ≥ 0; a source's indices count up without gaps over the blocks."""
    block = int(counts.sum())
    bounds = np.cumsum(counts)
    numbers, offsets = np.divmod(positions, block)
    slots = permute(offsets, block, seed ^ _SALT, numbers)
    sources = np.searchsorted(bounds, slots, side="right")
    within = slots - (bounds - counts)[sources]
    return sources, numbers * counts[sources] + within
