"""MinHash of a batch of documents: band keys that find candidates, and shingles that are compared."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.compiled import kernels
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.minhash.config import NearDuplicates

KERNELS = "ropewalk.datapipe.text.minhash.minhash_kernels"


class Shingles(NamedTuple):
    """Distinct shingle hashes of each document, ascending; those of document k are hashes[bounds[k]:bounds[k + 1]]."""

    hashes: NDArray[np.uint64]
    bounds: NDArray[np.int64]


@cache
def _permutations(count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return odd multipliers and summands of `count` permutations of 32-bit numbers, by SplitMix64: equal on every machine."""
    numbers, state = [], 0x5EED
    for _ in range(2 * count):
        state = (state + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & (2**64 - 1)
        numbers.append((value ^ value >> 31) >> 32)
    drawn = np.array(numbers, dtype=np.uint32)
    return drawn[:count] | np.uint32(1), drawn[count:]


def band_keys(batch: DocumentBatch, options: NearDuplicates) -> NDArray[np.uint64]:
    """Return keys, [documents, bands]: equal keys in a band make documents candidates; 0 for a document without words."""
    keys = np.empty((len(batch), options.bands), dtype=np.uint64)
    multiply, add = _permutations(options.bands * options.rows)
    kernels(KERNELS).band_keys(batch.words.folded, batch.words.first, options.ngram, options.rows, multiply, add, keys)
    return keys


def shingles_of(batch: DocumentBatch, options: NearDuplicates) -> Shingles:
    """Return the shingles of each document."""
    hashes = np.empty(len(batch.words.folded), dtype=np.uint64)
    bounds = np.empty(len(batch) + 1, dtype=np.int64)
    kernels(KERNELS).shingle_sets(batch.words.folded, batch.words.first, options.ngram, hashes, bounds)
    return Shingles(hashes[: bounds[-1]], bounds)
