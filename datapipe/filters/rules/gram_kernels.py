"""Gopher's n-gram rules for the words of one text: the most frequent n-gram, and all repeated ones.

Only n-grams whose first and last n-1 words occur more than once are considered: no other can repeat.
"""

import numpy as np
from numba import njit

from ropewalk.datapipe.text.kernels import COMPILE, MIX
from ropewalk.datapipe.text.seen_kernels import capacity

BASE = np.uint64(0xD6E8FEB86659FD93)


@njit(**COMPILE)
def _extend_grams(size, many, exact, scratch, mask, stamp):
    """Extend the n-grams at the first `many` of `starts` by one word, mark repeated ones in `again`, and write the first
    occurrence of each to `firsts`. Returns the count of the most frequent n-gram and its first occurrence (on ties the first).
    """
    grams, starts, again, firsts, counts, slots = scratch
    most, best = 1, 0
    for j in range(many):
        k = starts[j]
        gram = grams[k] * BASE + exact[k + size - 1]
        grams[k] = gram
        slot = np.int64((gram * MIX) >> np.uint64(20)) & mask
        while True:
            entry = slots[slot]
            if entry >> 32 != stamp:
                slots[slot] = (stamp << 32) | k
                counts[k], firsts[k] = 1, k
                break
            other = entry & 0xFFFFFFFF
            if grams[other] == gram:
                again[k], again[other], firsts[k] = size, size, other
                counts[other] += 1
                if counts[other] > most or (counts[other] == most and other < best):
                    most, best = counts[other], other
                break
            slot = (slot + 1) & mask
    return most, best


@njit(**COMPILE)
def _keep_candidates(size, many, num_words, scratch):
    """Keep those of the first `many` starts whose two shorter n-grams both repeat; return their number."""
    _, starts, again, _, _, _ = scratch
    num_kept = 0
    for j in range(many):
        k = starts[j]
        starts[num_kept] = k
        num_kept += (k + size <= num_words) & (again[k] == size - 1) & (again[min(k + 1, num_words - 1)] == size - 1)
    return num_kept


@njit(**COMPILE)
def _repeated_characters(size, many, chars, scratch):
    """Count the characters of n-grams that repeat an earlier one, without overlaps: the search continues after each."""
    _, starts, again, firsts, counts, _ = scratch
    characters, behind = 0, 0
    for j in range(many):
        k = starts[j]
        if k < behind or again[k] != size:
            continue
        if counts[firsts[k]] == -1:  # occurred earlier in the search
            for word in range(k, k + size):
                characters += chars[word]
            behind = k + size
        counts[firsts[k]] = -1
    return characters


@njit(**COMPILE)
def gram_rule(exact, chars, characters, limits, scratch, stamp):
    """Return the first n-gram rule that drops a text, or 0: most frequent 2- to 4-grams, then repeated 5- to 10-grams."""
    grams, starts, again = scratch[0], scratch[1], scratch[2]
    num_words = len(exact)
    mask = capacity(num_words) - 1
    many = max(num_words - 1, 0)
    for k in range(num_words):
        grams[k], starts[k], again[k] = exact[k], k, 0
    for size in range(2, min(num_words, 10) + 1):
        if size > 2:
            many = _keep_candidates(size, many, num_words, scratch)
        if size > 4 and not many:
            return 0
        most, best = _extend_grams(size, many, exact, scratch, mask, stamp + size)
        limit = limits[2 + size]
        if np.isnan(limit):
            continue
        if size <= 4:
            covered = size - 1
            for word in range(best, best + size):
                covered += chars[word]
            covered *= most
        else:
            covered = _repeated_characters(size, many, chars, scratch)
        if covered / characters > limit:
            return 3 + size
    return 0
