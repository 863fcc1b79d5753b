"""Gopher's rules of n-grams over the words of one text: the most frequent ones, and all that repeat.

Only those are looked at whose first and last n-1 words occur more than once: no other can repeat.
"""

import numpy as np
from numba import njit

from ropewalk.datapipe.text.kernels import COMPILE, MIX
from ropewalk.datapipe.text.seen_kernels import capacity

BASE = np.uint64(0xD6E8FEB86659FD93)


@njit(**COMPILE)
def _find_repeated(size, many, exact, scratch, mask, stamp):
    """Make n-grams of those one word shorter at the first `many` of `places`, mark the places of those that occur again in
    `again`, and name for each the place where it occurs first. Returns how often the most frequent one occurs, and where it
    does first (of equals the first).
    """
    grams, places, again, firsts, counts, slots = scratch
    most, best = 1, 0
    for j in range(many):
        k = places[j]
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
def _may_repeat(size, many, words, scratch):
    """Keep of the first `many` places those where an n-gram may repeat, as both of the shorter ones in it do; how many."""
    _, places, again, _, _, _ = scratch
    kept = 0
    for j in range(many):
        k = places[j]
        places[kept] = k
        kept += (k + size <= words) & (again[k] == size - 1) & (again[min(k + 1, words - 1)] == size - 1)
    return kept


@njit(**COMPILE)
def _repeated_characters(size, many, chars, scratch):
    """The characters of n-grams seen before, none counted twice; the search goes on behind each that is found."""
    _, places, again, firsts, counts, _ = scratch
    characters, behind = 0, 0
    for j in range(many):
        k = places[j]
        if k < behind or again[k] != size:
            continue
        if counts[firsts[k]] == -1:  # met by the search
            for word in range(k, k + size):
                characters += chars[word]
            behind = k + size
        counts[firsts[k]] = -1
    return characters


@njit(**COMPILE)
def gram_rule(exact, chars, characters, limits, scratch, stamp):
    """The first rule of n-grams that drops a text: 2 to 4 the most frequent one, 5 to 10 all that repeat. Returns 0 for none."""
    grams, places, again = scratch[0], scratch[1], scratch[2]
    words = len(exact)
    mask = capacity(words) - 1
    many = max(words - 1, 0)
    for k in range(words):
        grams[k], places[k], again[k] = exact[k], k, 0
    for size in range(2, min(words, 10) + 1):
        if size > 2:
            many = _may_repeat(size, many, words, scratch)
        if size > 4 and not many:
            return 0
        most, best = _find_repeated(size, many, exact, scratch, mask, stamp + size)
        limit = limits[2 + size]
        if np.isnan(limit):
            continue
        if size <= 4:
            found = size - 1
            for word in range(best, best + size):
                found += chars[word]
            found *= most
        else:
            found = _repeated_characters(size, many, chars, scratch)
        if found / characters > limit:
            return 3 + size
    return 0
