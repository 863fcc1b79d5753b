"""Gopher's quality and repetition rules over a batch: the number of the first rule that drops each text, or 0."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.filters.rules.gram_kernels import gram_rule
from ropewalk.datapipe.text.characters import ALPHABETIC, BREAK
from ropewalk.datapipe.text.kernels import (
    BYTES,
    CODES,
    COMPILE,
    HASHES,
    INTS,
    NOT_SYMBOL,
    OFFSETS,
    UNSPACED,
    code_point,
    hash_range,
    last_code_point,
    strip_range,
)
from ropewalk.datapipe.text.seen_kernels import add_key, capacity

LIMITS = types.Array(types.float64, 1, "C", readonly=True)  # threshold of each rule; NaN if the rule is off
ELLIPSIS, BULLET = 0x2026, 0x2022


@njit(**COMPILE)
def _count_words(chars, kind, exact, first, last, stop_words):
    """Return the number of words that are not only symbols, those of them in scripts with spaces and their characters, the number
    of words with a letter, and the number of distinct stop words.
    """
    count, spaced, characters, alphabetic = 0, 0, 0, 0
    present, sieve = np.uint64(0), np.uint64(0)
    for stop_word in stop_words:
        sieve |= np.uint64(1) << (stop_word & np.uint64(63))
    for word in range(first, last):
        flag = kind[word]
        if flag & NOT_SYMBOL:
            count += 1
            if not flag & UNSPACED:
                spaced += 1
                characters += chars[word]
        alphabetic += (flag & ALPHABETIC) != 0
        if sieve >> (exact[word] & np.uint64(63)) & np.uint64(1):
            for k in range(len(stop_words)):
                if exact[word] == stop_words[k]:
                    present |= np.uint64(1) << np.uint64(k)
    stops = 0
    while present:
        present &= present - np.uint64(1)
        stops += 1
    return count, spaced, characters, alphabetic, stops


@njit((OFFSETS, types.int64, types.int64, types.int64), **COMPILE)
def _ellipses(starts, at, start, end):
    """Count the ellipses of a text, those that overlap once; `starts` are the start bytes of all. Also return the next index."""
    count, behind = 0, start
    while at < len(starts) and starts[at] < end:
        if starts[at] >= behind and starts[at] + 3 <= end:
            count += 1
            behind = starts[at] + 3
        at += 1
    return count, at


@njit(**COMPILE)
def line_end(data, start, end, flags):
    """Return the end of the line at `start` and the start of the next one, as str.splitlines cuts."""
    at = start
    while at < end:
        if 32 <= data[at] < 128:
            at += 1
            continue
        code, length = code_point(data, at)
        if flags[code] & BREAK:
            if code == 13 and at + 1 < end and data[at + 1] == 10:
                length = 2
            return at, at + length
        at += length
    return end, end


@njit(**COMPILE)
def _ends_with_ellipsis(data, start, end):
    if start == end:
        return False
    if end - start >= 3 and data[end - 1] == 46 and data[end - 2] == 46 and data[end - 3] == 46:
        return True
    return last_code_point(data, start, end)[0] == ELLIPSIS


@njit(**COMPILE)
def _marked_lines(data, start, end, flags):
    """Count the lines, those that start with a bullet, and those that end with an ellipsis."""
    lines, bullets, ellipses, at = 0, 0, 0, start
    while at < end:
        stop, following = line_end(data, at, end, flags)
        begin, stop = strip_range(data, at, stop, flags)
        lines += 1
        if begin < stop:
            code = code_point(data, begin)[0]
            bullets += code in (BULLET, 45)
            ellipses += _ends_with_ellipsis(data, begin, stop)
        at = following
    return lines, bullets, ellipses


@njit(
    types.void(BYTES, OFFSETS, BYTES, OFFSETS, INTS, BYTES, HASHES, HASHES, OFFSETS, OFFSETS, LIMITS, CODES),
    **COMPILE,
)
def quality(data, offsets, flags, first, chars, kind, exact, stop_words, hashes, ellipses, limits, codes):
    """Apply the rules in the order of `limits`: minimum and maximum number of words, minimum and maximum mean length, hash signs
    and ellipses per word, share of lines that start with a bullet, that end with an ellipsis, words with a letter, stop words.

    `hashes` has the number of hash signs of each text, `ellipses` the ascending start bytes of `...` and of the character.
    The mean length is over words in scripts with spaces: a Chinese character counts as a word, but has no meaningful length.
    """
    at = 0
    for text in range(len(codes)):
        start, end = offsets[text], offsets[text + 1]
        num_words = max(first[text + 1] - first[text], 1)
        counts = _count_words(chars, kind, exact, first[text], first[text + 1], stop_words)
        count, spaced, characters, alphabetic, stops = counts
        points, at = _ellipses(ellipses, at, start, end)
        lines, bullets, open_ends = _marked_lines(data, start, end, flags)
        length = characters / spaced if spaced else np.nan
        code = 0
        if count < limits[0]:
            code = 1
        elif count > limits[1]:
            code = 2
        elif length < limits[2]:
            code = 3
        elif length > limits[3]:
            code = 4
        elif hashes[text] / num_words > limits[4]:
            code = 5
        elif points / num_words > limits[5]:
            code = 6
        elif bullets / max(lines, 1) > limits[6]:
            code = 7
        elif open_ends / max(lines, 1) > limits[7]:
            code = 8
        elif alphabetic / num_words < limits[8]:
            code = 9
        elif stops < limits[9]:
            code = 10
        codes[text] = code


@njit(**COMPILE)
def _repeated_paragraphs(data, start, end, flags, table, stamps, mask, stamp):
    """Count the paragraphs (separated by two or more newlines), those that repeat an earlier one, and their characters."""
    begin, end = strip_range(data, start, end, flags)
    count, repeated, characters, at = 0, 0, 0, begin
    while True:
        stop, size = at, 0
        while stop < end and not (data[stop] == 10 and stop + 1 < end and data[stop + 1] == 10):
            size += (data[stop] & 0xC0) != 0x80
            stop += 1
        count += 1
        if add_key(hash_range(data, at, stop), table, stamps, mask, stamp):
            repeated += 1
            characters += size
        if stop >= end:
            return count, repeated, characters
        at = stop
        while data[at] == 10:
            at += 1


@njit(**COMPILE)
def _repeated_lines(data, starts, ends, chars, first, last, table, stamps, mask, stamp):
    """Count the lines, those that repeat an earlier one, and their characters; inner empty lines do not count."""
    count, repeated, characters = 0, 0, 0
    for line in range(first, last):
        if starts[line] == ends[line] and not (last - first > 1 and (line == first or line == last - 1)):
            continue
        count += 1
        if add_key(hash_range(data, starts[line], ends[line]), table, stamps, mask, stamp):
            repeated += 1
            characters += chars[line]
    return max(count, 1), repeated, characters


@njit(types.void(BYTES, OFFSETS, BYTES, OFFSETS, INTS, HASHES, OFFSETS, INTS, INTS, INTS, LIMITS, CODES), **COMPILE)
def repetition(data, offsets, flags, first, chars, exact, line_first, line_start, line_end, line_chars, limits, codes):
    """Apply the rules in the order of `limits`: share of repeated paragraphs, their characters, repeated lines, their characters,
    characters of the most frequent 2-, 3- and 4-gram, characters of repeated 5- to 10-grams.
    """
    most = 1
    for text in range(len(codes)):
        most = max(most, first[text + 1] - first[text], line_first[text + 1] - line_first[text] + 1)
    room = capacity(most)
    table, stamps = np.empty(room, dtype=np.uint64), np.zeros(room, dtype=np.int64)
    numbers = np.empty((3, most), dtype=np.int32)
    grams, again = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint8)
    scratch = (grams, numbers[0], again, numbers[1], numbers[2], np.zeros(room, dtype=np.int64))
    for text in range(len(codes)):
        stamp = 1 + 16 * text
        low, high = line_first[text], line_first[text + 1]
        characters = high - low - 1
        for line in range(low, high):
            characters += line_chars[line]
        characters = max(characters, 1)
        mask = capacity(high - low + 1) - 1
        count, repeated, size = _repeated_paragraphs(data, offsets[text], offsets[text + 1], flags, table, stamps, mask, stamp)
        code = 0
        if repeated / count > limits[0]:
            code = 1
        elif size / characters > limits[1]:
            code = 2
        else:
            count, repeated, size = _repeated_lines(
                data, line_start, line_end, line_chars, low, high, table, stamps, mask, stamp + 1
            )
            if repeated / count > limits[2]:
                code = 3
            elif size / characters > limits[3]:
                code = 4
            else:
                begin, end = first[text], first[text + 1]
                code = gram_rule(exact[begin:end], chars[begin:end], characters, limits, scratch, stamp)
        codes[text] = code
