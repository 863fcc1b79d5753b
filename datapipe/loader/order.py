"""A shuffle of [0, n) that is computed instead of stored: a pure function of (seed, epoch, index)."""

from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 6  # four make a Luby-Rackoff permutation pseudorandom; two more because each round mixes only weakly

WINDOW_RUNS = 64
_WITHIN, _RUNS = 0x7769_7468, 0x7275_6E73  # keep the orders of elements and runs apart

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(values: Words) -> Words:
    """Apply the finalizer of SplitMix64 (Steele, Lea, Flood 2014) to each element: a bijection of 64-bit words."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def hash_words(*parts: Any) -> Words:
    """Hash several integers or integer arrays, broadcast together, to one 64-bit word per element."""
    # arrays, never scalars: numpy warns when a scalar product wraps, which is intended here
    state: Words = np.zeros(1, np.uint64)
    for part in parts:
        state = mix((state + _GOLDEN) ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


def permute(indices: Indices, n: int, seed: int, epoch: Any = 0) -> Indices:
    """Return the position of each index of [0, n) in the shuffle of `epoch`: one number, or one for each index.

    A balanced Feistel network over the smallest even number of bits that holds n, applied again (at most four times on
    average) until the result is below n, which makes it a bijection of [0, n) for every n.
    """
    assert n >= 1, "an empty range has no order"
    assert indices.size == 0 or (indices.min() >= 0 and indices.max() < n), "index outside of [0, n)"
    half = max(2, ((n - 1).bit_length() + 1) // 2)
    epochs = np.unique(epoch)
    if len(epochs) > 1:
        epochs = np.broadcast_to(np.asarray(epoch), indices.shape)
    keys = [hash_words(seed, epochs, r) for r in range(ROUNDS)]  # one for all indices, or one for each
    values = _feistel(indices.astype(np.uint64), keys, half)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], keys if len(epochs) == 1 else [key[outside] for key in keys], half)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def permute_runs(indices: Indices, n: int, run: int, seed: int, epochs: Indices) -> Indices:
    """Return the positions of indices of [0, n) in a shuffle that reads runs of `run` neighbours close to each other.

    Whole runs are permuted over [0, n), then the elements of each window of WINDOW_RUNS runs. The elements after the last whole
    run come in the last window.
    """
    num_runs, window = n // run, run * WINDOW_RUNS
    numbers = indices // window
    windows = -(-n // window)
    places = np.empty_like(indices)
    for mine, size in ((numbers < windows - 1, window), (numbers == windows - 1, n - (windows - 1) * window)):
        if mine.any():
            within = permute(indices[mine] % window, size, seed ^ _WITHIN, epochs[mine] * windows + numbers[mine])
            places[mine] = numbers[mine] * window + within
    slots, offsets = np.divmod(places, run)
    whole = slots < num_runs
    if whole.any():
        places[whole] = permute(slots[whole], num_runs, seed ^ _RUNS, epochs[whole]) * run + offsets[whole]
    return places


def firsts_of_runs(slots: Indices, n: int, run: int, seed: int, epoch: int) -> Indices:
    """Return the first elements of the runs in this order of `permute_runs`: slots 0 to WINDOW_RUNS - 1 are the first window."""
    return permute(slots, n // run, seed ^ _RUNS, epoch) * run


def _feistel(values: Words, keys: list[Words], half: int) -> Words:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mix(right * _GOLDEN + key) & mask)
    return (left << shift) | right
