"""Compiled n-gram index: fill the hash table, scan texts against it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.decontamination.word_kernels import hash_words
from ropewalk.datapipe.text.kernel import kernel

MIX = np.uint64(0x9E3779B97F4A7C15)
ONE_CHANGED_FROM = 12  # words; in a shorter n-gram no word may differ, since no intact half would be left


@kernel
def _hash(hashes: NDArray[np.uint64], start: int, count: int) -> Any:
    value = np.uint64(count)
    for at in range(start, start + count):
        value = (value ^ hashes[at]) * MIX
        value ^= value >> np.uint64(29)
    return value


@kernel
def build_table(
    item_words: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    seed: int,
    slots: NDArray[np.int64],
    chain: NDArray[np.int64],
    sieve: NDArray[np.uint8],
) -> None:
    """Enter each half n-gram of each part: `slots` by linear probing, `chain` in ascending order of positions."""
    mask = np.uint64(len(slots) - 1)
    bits = np.uint64(len(sieve) * 8 - 1)
    for part in range(len(bounds) - 1):
        for position in range(bounds[part + 1] - seed, bounds[part] - 1, -1):
            value = _hash(item_words, position, seed)
            bit = (value >> np.uint64(20)) & bits
            sieve[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
            slot = value & mask
            while slots[slot] != 0 and not _equal(item_words, slots[slot] - 1, item_words, position, seed):
                slot = (slot + np.uint64(1)) & mask
            chain[position] = slots[slot]
            slots[slot] = position + 1


@kernel
def _equal(a: NDArray[np.uint64], start: int, b: NDArray[np.uint64], other: int, count: int) -> bool:
    for at in range(count):
        if a[start + at] != b[other + at]:
            return False
    return True


@kernel
def _window(
    text: NDArray[np.uint64],
    num_words: int,
    at: int,
    item_words: NDArray[np.uint64],
    first: int,
    last: int,
    position: int,
    seed: int,
    ngram: int,
) -> int:
    """Return the start, in the text, of a shared n-gram around an equal half in which at most one word differs; -1 if none."""
    count = min(ngram, last - first)
    allowed = 1 if count >= ONE_CHANGED_FROM else 0
    for back in range(min(count - seed, position - first, at) + 1):
        ahead = count - seed - back
        if position + seed + ahead > last or at + seed + ahead > num_words:
            continue
        wrong = 0
        for step in range(1, back + 1):
            wrong += text[at - step] != item_words[position - step]
        for step in range(ahead):
            wrong += text[at + seed + step] != item_words[position + seed + step]
        if wrong <= allowed:
            return at - back
    return -1


@kernel
def find_overlaps(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    classes: NDArray[np.uint8],
    scratch: Any,
    table: Any,
    ngram: int,
    first_only: bool,
    stamps: NDArray[np.int64],
    last_row: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Write a row (text, item, words, start) for each overlap to `out`; return their number, which may exceed its rows."""
    hashes, starts = scratch
    item_words, bounds, owner, slots, chain, sieve = table
    mask, bits, seed = np.uint64(len(slots) - 1), np.uint64(len(sieve) * 8 - 1), max(ngram // 2, 1)
    rows = 0
    for text in range(len(offsets) - 1):
        count = hash_words(data, offsets[text], offsets[text + 1], classes, hashes, starts)
        first_row = rows
        for at in range(count - seed + 1):
            value = _hash(hashes, at, seed)
            bit = (value >> np.uint64(20)) & bits
            if not (sieve[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & np.uint8(1):
                continue
            slot = value & mask
            while slots[slot] != 0 and not _equal(item_words, slots[slot] - 1, hashes, at, seed):
                slot = (slot + np.uint64(1)) & mask
            position = slots[slot] - 1
            while position >= 0:
                part = np.searchsorted(bounds, position, side="right") - 1
                size = min(ngram, bounds[part + 1] - bounds[part])
                begin = _window(hashes, count, at, item_words, bounds[part], bounds[part + 1], position, seed, ngram)
                if begin >= 0:
                    item = owner[part]
                    row = last_row[item]
                    if row < first_row:
                        row = rows
                        last_row[item] = row
                        rows += 1
                        if row < len(out):
                            out[row, 0], out[row, 1], out[row, 2] = text, item, 0
                            out[row, 3] = starts[begin] - offsets[text]
                    if row < len(out):
                        for step in range(size):
                            covered = position - (at - begin) + step
                            if stamps[covered] != text + 1 and item_words[covered] == hashes[begin + step]:
                                stamps[covered] = text + 1
                                out[row, 2] += 1
                    if first_only:
                        break
                position = chain[position] - 1
            if first_only and rows > first_row:
                break
    return rows
