"""Words and lines of a batch of texts, in one pass over their bytes; hashes that stand for them.

Texts lie one behind another in `data` (UTF-8); text k is data[offsets[k]:offsets[k + 1]]. A word is what white space
separates, as by str.split. Equal hashes count as equal words: 64 bits of a document's words collide once in 10^9 documents.
"""

import numpy as np
from numba import njit, types

from datapipe.text.characters import ALPHANUMERIC, BREAK, SPACE, SYMBOL

BYTES = types.Array(types.uint8, 1, "C", readonly=True)
OFFSETS = types.Array(types.int64, 1, "C", readonly=True)
FOLD = types.Array(types.uint32, 1, "C", readonly=True)
HASHES = types.Array(types.uint64, 1, "C", readonly=True)
INTS = types.Array(types.int32, 1, "C", readonly=True)
CODES = types.uint8[::1]
COMPILE = {"cache": True, "nogil": True, "error_model": "numpy"}

PRIME = np.uint64(0x100000001B3)
SEED = np.uint64(0xCBF29CE484222325)
MIX = np.uint64(0x9FB21C651E98DF25)
NOT_SYMBOL = BREAK  # in a word's flags, where no line break can be: it has a character that is no symbol


@njit(inline="always")
def code_point(data, at):
    """The character at a byte, and how many bytes it has; what Arrow holds is valid UTF-8."""
    first = np.uint32(data[at])
    if first < 0x80:
        return first, 1
    second = np.uint32(data[at + 1]) & np.uint32(0x3F)
    if first < 0xE0:
        return np.uint32(((first & np.uint32(0x1F)) << np.uint32(6)) | second), 2
    third = np.uint32(data[at + 2]) & np.uint32(0x3F)
    if first < 0xF0:
        return np.uint32(((first & np.uint32(0x0F)) << np.uint32(12)) | (second << np.uint32(6)) | third), 3
    fourth = np.uint32(data[at + 3]) & np.uint32(0x3F)
    high = ((first & np.uint32(0x07)) << np.uint32(18)) | (second << np.uint32(12))
    return np.uint32(high | (third << np.uint32(6)) | fourth), 4


@njit(**COMPILE)
def last_code_point(data, start, end):
    """The last character before `end`, and how many bytes it has; start < end."""
    at = end - 1
    while at > start and (data[at] & 0xC0) == 0x80:
        at -= 1
    return code_point(data, at)


@njit(**COMPILE)
def stripped(data, start, end, flags):
    """The range without white space at its ends, as str.strip has it."""
    while start < end:
        code, length = code_point(data, start)
        if not flags[code] & SPACE:
            break
        start += length
    while start < end:
        code, length = last_code_point(data, start, end)
        if not flags[code] & SPACE:
            break
        end -= length
    return start, end


@njit(inline="always")
def mixed(value):
    """The same number, its bits mixed."""
    value = np.uint64(value) ^ (np.uint64(value) >> np.uint64(32))
    value = value * MIX
    return value ^ (value >> np.uint64(29))


@njit(**COMPILE)
def hash_range(data, start, end):
    """A 64-bit hash of some bytes."""
    value = SEED ^ np.uint64(end - start)
    at = start
    while at + 8 <= end:
        word = np.uint64(0)
        for k in range(8):
            word |= np.uint64(data[at + k]) << np.uint64(8 * k)
        value = mixed((value ^ word) * MIX)
        at += 8
    word = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        word |= np.uint64(data[at]) << shift
        shift += np.uint64(8)
        at += 1
    return mixed((value ^ word) * MIX)


@njit(
    types.int64(
        BYTES,
        OFFSETS,
        BYTES,
        FOLD,
        types.int32[::1],
        types.int32[::1],
        types.uint8[::1],
        types.uint64[::1],
        types.uint64[::1],
        types.int64[::1],
    ),
    **COMPILE,
)
def split_words(data, offsets, flags, lower, start, chars, kind, exact, folded, first):
    """Fill in each word's first byte, characters, flags, hash, and hash of its letters and digits in lower case (0: none).

    `first` gets the first word of each text, and the end. Returns the number of words.
    """
    word = 0
    for text in range(len(offsets) - 1):
        first[text] = word
        at, end = offsets[text], offsets[text + 1]
        inside = False
        count, seen = 0, np.uint8(0)
        value, plain = SEED, np.uint64(0)
        while at < end:
            code, length = code_point(data, at)
            flag = flags[code]
            if flag & SPACE:
                if inside:
                    chars[word], kind[word], exact[word], folded[word] = count, seen, mixed(value), mixed(plain)
                    word += 1
                    inside = False
            else:
                if not inside:
                    inside = True
                    start[word] = at
                    count, seen = 0, np.uint8(0)
                    value, plain = SEED, np.uint64(0)
                count += 1
                seen |= flag if flag & SYMBOL else np.uint8(flag | NOT_SYMBOL)
                value = (value ^ np.uint64(code)) * PRIME
                if flag & ALPHANUMERIC:
                    plain = (plain + SEED ^ np.uint64(lower[code])) * PRIME
            at += length
        if inside:
            chars[word], kind[word], exact[word], folded[word] = count, seen, mixed(value), mixed(plain)
            word += 1
    first[len(offsets) - 1] = word
    return word


@njit(types.int64(BYTES, OFFSETS, types.int32[::1], types.int32[::1], types.int32[::1], types.int64[::1]), **COMPILE)
def split_lines(data, offsets, start, end, chars, first):
    """Fill in the first byte, end and characters of what lies between newlines; returns how many there are."""
    line = 0
    for text in range(len(offsets) - 1):
        first[text] = line
        begin, count = offsets[text], 0
        for at in range(offsets[text], offsets[text + 1]):
            byte = data[at]
            if byte == 10:
                start[line], end[line], chars[line] = begin, at, count
                line += 1
                begin, count = at + 1, 0
            else:
                count += (byte & 0xC0) != 0x80
        start[line], end[line], chars[line] = begin, offsets[text + 1], count
        line += 1
    first[len(offsets) - 1] = line
    return line


@njit(types.int64(BYTES), **COMPILE)
def count_newlines(data):
    """The number of newlines."""
    count = 0
    for byte in data:
        count += byte == 10
    return count
