"""Packing of conversations into samples of fixed length: best fit decreasing, new in every epoch, pure in (seed, k)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.loader.order import hash_words, permute

Indices = NDArray[np.int64]


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items of decreasing sizes in [0, capacity], each into the fullest bin with space; return the items of each bin."""
    bins: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # remaining space → bins
    spaces = 0  # one bit for each amount of space that some bin has
    for item, size in enumerate(sizes):
        assert size <= capacity, f"an item of {size} does not fit into {capacity}"
        fitting = spaces >> size << size
        if fitting:
            space = (fitting & -fitting).bit_length() - 1
            number = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        with_space[space - size].append(number)
        spaces |= 1 << (space - size)
    return bins


class Packs:
    """Samples of `capacity` positions, each of whole conversations; every conversation occurs once per epoch.

    The lengths that share a sample are fixed; the conversations of these lengths, and the order of the samples, are drawn
    again in every epoch.
    """

    def __init__(self, sizes: Indices, capacity: int, seed: int, *, packed: bool = True) -> None:
        self.sizes, self.capacity, self.seed = sizes, capacity, seed
        falling = np.sort(sizes)[::-1].tolist()
        self._bins = best_fit_decreasing(falling, capacity) if packed else [[item] for item in range(len(falling))]
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return len(self._bins)

    @property
    def fill_ratio(self) -> float:
        """Share of positions that hold a token rather than padding."""
        return float(self.sizes.sum()) / max(1, len(self._bins) * self.capacity)

    def __getitem__(self, position: int) -> list[int]:
        """Return the conversations of the sample at this position of the run (any k ≥ 0)."""
        epoch, index = divmod(position, len(self._bins))
        number = int(permute(np.array([index]), len(self._bins), self.seed, epoch)[0])
        order = self._epoch(epoch)
        return [int(order[item]) for item in self._bins[number]]

    def _draw(self, epoch: int) -> Indices:
        """Return the conversations by decreasing size, with equal sizes in an order of this epoch."""
        ties = hash_words(self.seed, epoch, np.arange(len(self.sizes)))
        return np.lexsort((ties, -self.sizes))
