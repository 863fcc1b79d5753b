"""Gopher's rules of quality and repetition over a batch: for each text the number of the first rule that drops it, or 0."""

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
    stripped,
)
from ropewalk.datapipe.text.seen_kernels import capacity, seen_before

LIMITS = types.Array(types.float64, 1, "C", readonly=True)  # a threshold for each rule; NaN: the rule is off
ELLIPSIS, BULLET = 0x2026, 0x2022


@njit(**COMPILE)
def _counted_words(chars, kind, exact, first, last, stop_words):
    """Words that are no mere symbols; how many of these stand between blanks, and their characters; words with a letter; how
    many of the stop words occur.
    """
    count, spaced, characters, alphabetic = 0, 0, 0, 0
    found, sieve = np.uint64(0), np.uint64(0)
    for wanted in stop_words:
        sieve |= np.uint64(1) << (wanted & np.uint64(63))
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
                    found |= np.uint64(1) << np.uint64(k)
    stops = 0
    while found:
        found &= found - np.uint64(1)
        stops += 1
    return count, spaced, characters, alphabetic, stops


@njit(**COMPILE)
def _ellipses(places, at, start, end):
    """How many ellipses a text has, none within another, of those that begin at `places`; the first place behind the text."""
    count, behind = 0, start
    while at < len(places) and places[at] < end:
        if places[at] >= behind and places[at] + 3 <= end:
            count += 1
            behind = places[at] + 3
        at += 1
    return count, at


@njit(**COMPILE)
def line_end(data, start, end, flags):
    """The end of the line that begins at `start`, and where the next one begins, as str.splitlines cuts."""
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
    """Lines, those that begin with a bullet, and those that end with an ellipsis."""
    lines, bullets, ellipses, at = 0, 0, 0, start
    while at < end:
        stop, following = line_end(data, at, end, flags)
        begin, stop = stripped(data, at, stop, flags)
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
    """The rules, in the order of `limits`: words, at least and at most; their mean length, at least and at most; hash signs and
    ellipses for each word; lines that begin with a bullet, and that end with an ellipsis; words with a letter; stop words.
    `hashes` has the hash signs of each text, `ellipses` the places where three points or the character stand, ascending.
    The mean length is of words between blanks: a character of Chinese, which counts as a word, says nothing of it.
    """
    place = 0
    for text in range(len(codes)):
        start, end = offsets[text], offsets[text + 1]
        words = max(first[text + 1] - first[text], 1)
        counted = _counted_words(chars, kind, exact, first[text], first[text + 1], stop_words)
        count, spaced, characters, alphabetic, stops = counted
        points, place = _ellipses(ellipses, place, start, end)
        lines, bullets, ended = _marked_lines(data, start, end, flags)
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
        elif hashes[text] / words > limits[4]:
            code = 5
        elif points / words > limits[5]:
            code = 6
        elif bullets / max(lines, 1) > limits[6]:
            code = 7
        elif ended / max(lines, 1) > limits[7]:
            code = 8
        elif alphabetic / words < limits[8]:
            code = 9
        elif stops < limits[9]:
            code = 10
        codes[text] = code


@njit(**COMPILE)
def _repeated_paragraphs(data, start, end, flags, table, stamps, mask, stamp):
    """Paragraphs (what two newlines or more separate), those seen before, and the characters of these."""
    begin, end = stripped(data, start, end, flags)
    count, repeated, characters, at = 0, 0, 0, begin
    while True:
        stop, size = at, 0
        while stop < end and not (data[stop] == 10 and stop + 1 < end and data[stop + 1] == 10):
            size += (data[stop] & 0xC0) != 0x80
            stop += 1
        count += 1
        if seen_before(hash_range(data, at, stop), table, stamps, mask, stamp):
            repeated += 1
            characters += size
        if stop >= end:
            return count, repeated, characters
        at = stop
        while data[at] == 10:
            at += 1


@njit(**COMPILE)
def _repeated_lines(data, starts, ends, chars, first, last, table, stamps, mask, stamp):
    """Lines (what newlines separate; an empty one only at either end), those seen before, and the characters of these."""
    count, repeated, characters = 0, 0, 0
    for line in range(first, last):
        if starts[line] == ends[line] and not (last - first > 1 and (line == first or line == last - 1)):
            continue
        count += 1
        if seen_before(hash_range(data, starts[line], ends[line]), table, stamps, mask, stamp):
            repeated += 1
            characters += chars[line]
    return max(count, 1), repeated, characters


@njit(types.void(BYTES, OFFSETS, BYTES, OFFSETS, INTS, HASHES, OFFSETS, INTS, INTS, INTS, LIMITS, CODES), **COMPILE)
def repetition(data, offsets, flags, first, chars, exact, line_first, line_start, line_end, line_chars, limits, codes):
    """The rules, in the order of `limits`: repeated paragraphs, their characters; repeated lines, their characters; characters
    of the most frequent 2-, 3- and 4-gram; of repeated 5- to 10-grams.
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
