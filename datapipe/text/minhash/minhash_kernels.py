"""MinHash band keys and shingle sets of a batch of documents."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.text.kernels import COMPILE, FOLD, HASHES, MIX, OFFSETS, SEED, mix_bits

BASE = np.uint64(0xA24BAED4963EE407)


@njit(**COMPILE)
def _plain_words(folded, first, last, plain):
    """Copy the hashes of words that have a letter or digit to `plain`; return their number."""
    count = 0
    for word in range(first, last):
        if folded[word]:
            plain[count] = folded[word]
            count += 1
    return count


@njit(**COMPILE)
def _shingle(plain, at, size):
    """Return the hash of the n-gram of `size` words from `at`."""
    value = np.uint64(size)
    for word in range(at, at + size):
        value = value * BASE + plain[word]
    return mix_bits(value * MIX)


@njit(types.void(HASHES, OFFSETS, types.int64, types.int64, FOLD, FOLD, types.uint64[:, ::1]), **COMPILE)
def band_keys(folded, first, ngram, rows, multiply, add, keys):
    """Fill in, for each text and band, an odd hash of the band's MinHash values; 0 for a text without words.

    A text of fewer than `ngram` words has one shingle of all its words.
    """
    most = 1
    for text in range(len(first) - 1):
        most = max(most, first[text + 1] - first[text])
    plain, lowest = np.empty(most, dtype=np.uint64), np.empty(len(multiply), dtype=np.uint32)
    for text in range(len(first) - 1):
        count = _plain_words(folded, first[text], first[text + 1], plain)
        size = min(ngram, count)
        lowest[:] = np.uint32(0xFFFFFFFF)
        for at in range(count - size + 1 if count else 0):
            low = np.uint32(_shingle(plain, at, size) >> np.uint64(32))
            for k in range(len(multiply)):
                value = np.uint32(np.uint32(multiply[k] * low) + add[k])
                lowest[k] = min(lowest[k], value)
        for band in range(keys.shape[1]):
            key = SEED ^ np.uint64(band)
            for k in range(band * rows, (band + 1) * rows):
                key = mix_bits((key ^ np.uint64(lowest[k])) * MIX)
            keys[text, band] = (key | np.uint64(1)) if count else np.uint64(0)


@njit(types.void(HASHES, OFFSETS, types.int64, types.uint64[::1], types.int64[::1]), **COMPILE)
def shingle_sets(folded, first, ngram, hashes, bounds):
    """Write the distinct shingles of text k, ascending, to hashes[bounds[k]:bounds[k + 1]]."""
    most = 1
    for text in range(len(first) - 1):
        most = max(most, first[text + 1] - first[text])
    plain, values = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint64)
    to = 0
    bounds[0] = 0
    for text in range(len(first) - 1):
        count = _plain_words(folded, first[text], first[text + 1], plain)
        size = min(ngram, count)
        shingles = count - size + 1 if count else 0
        for at in range(shingles):
            values[at] = _shingle(plain, at, size)
        ordered = np.sort(values[:shingles])
        for at in range(shingles):
            if at == 0 or ordered[at] != ordered[at - 1]:
                hashes[to] = ordered[at]
                to += 1
        bounds[text + 1] = to
