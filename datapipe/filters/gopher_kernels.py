"""Gopher's rules of quality and repetition over a batch: for each text the number of the first rule that drops it, or 0."""

import numpy as np
from numba import njit, types

from datapipe.text.characters import ALPHABETIC, BREAK
from datapipe.text.kernels import (
    BYTES,
    CODES,
    COMPILE,
    HASHES,
    INTS,
    NOT_SYMBOL,
    OFFSETS,
    code_point,
    hash_range,
    last_code_point,
    stripped,
)
from datapipe.text.seen_kernels import capacity, seen_before, slot_of

LIMITS = types.Array(types.float64, 1, "C", readonly=True)  # a threshold for each rule; NaN: the rule is off
BASE = np.uint64(0xD6E8FEB86659FD93)
ELLIPSIS, BULLET = 0x2026, 0x2022


@njit(**COMPILE)
def _counted_words(chars, kind, exact, first, last, stop_words):
    """Words that are no mere symbols, their characters, words with a letter, and how many of the stop words occur."""
    count, characters, alphabetic = 0, 0, 0
    found = np.uint64(0)
    for word in range(first, last):
        if kind[word] & NOT_SYMBOL:
            count += 1
            characters += chars[word]
        alphabetic += (kind[word] & ALPHABETIC) != 0
        for k in range(len(stop_words)):
            if exact[word] == stop_words[k]:
                found |= np.uint64(1) << np.uint64(k)
    stops = 0
    while found:
        found &= found - np.uint64(1)
        stops += 1
    return count, characters, alphabetic, stops


@njit(**COMPILE)
def _is_ellipsis(data, at, end):
    """Whether an ellipsis begins here; both kinds have three bytes."""
    if at + 2 >= end:
        return False
    points = data[at] == 46 and data[at + 1] == 46 and data[at + 2] == 46
    return points or (data[at] == 0xE2 and data[at + 1] == 0x80 and data[at + 2] == 0xA6)


@njit(**COMPILE)
def _symbols(data, start, end):
    """Hash signs, and ellipses (three points, or the character)."""
    hashes, ellipses, at = 0, 0, start
    while at < end:
        byte = data[at]
        if byte == 35:
            hashes += 1
        elif _is_ellipsis(data, at, end):
            ellipses += 1
            at += 2
        at += 1
    return hashes, ellipses


@njit(**COMPILE)
def line_end(data, start, end, flags):
    """The end of the line that begins at `start`, and where the next one begins, as str.splitlines cuts."""
    at = start
    while at < end:
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


@njit(types.void(BYTES, OFFSETS, BYTES, OFFSETS, INTS, BYTES, HASHES, HASHES, LIMITS, CODES), **COMPILE)
def quality(data, offsets, flags, first, chars, kind, exact, stop_words, limits, codes):
    """The rules, in the order of `limits`: words, at least and at most; their mean length, at least and at most; hash signs and
    ellipses for each word; lines that begin with a bullet, and that end with an ellipsis; words with a letter; stop words.
    """
    for text in range(len(codes)):
        start, end = offsets[text], offsets[text + 1]
        words = max(first[text + 1] - first[text], 1)
        count, characters, alphabetic, stops = _counted_words(chars, kind, exact, first[text], first[text + 1], stop_words)
        hashes, ellipses = _symbols(data, start, end)
        lines, bullets, ended = _marked_lines(data, start, end, flags)
        length = characters / max(count, 1) if count else np.nan
        code = 0
        if count < limits[0]:
            code = 1
        elif count > limits[1]:
            code = 2
        elif length < limits[2]:
            code = 3
        elif length > limits[3]:
            code = 4
        elif hashes / words > limits[4]:
            code = 5
        elif ellipses / words > limits[5]:
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


@njit(**COMPILE)
def _top_gram(grams, chars, first, size, table, stamps, counts, firsts, mask, stamp):
    """The characters of the most frequent n-gram, a blank between words, times how often it occurs; of equals the first."""
    most, best = 0, 0
    for k in range(len(grams)):
        slot = slot_of(grams[k], table, stamps, mask, stamp)
        if stamps[slot] != stamp:
            stamps[slot], table[slot], counts[slot], firsts[slot] = stamp, grams[k], 0, k
        counts[slot] += 1
        if counts[slot] > most:
            most, best = counts[slot], firsts[slot]
        elif counts[slot] == most and firsts[slot] < best:
            best = firsts[slot]
    length = size - 1
    for word in range(first + best, first + best + size):
        length += chars[word]
    return length * most


@njit(**COMPILE)
def _repeated_grams(grams, chars, first, size, table, stamps, mask, stamp):
    """The characters of n-grams seen before, none counted twice; the search goes on behind each that is found."""
    characters, k = 0, 0
    while k < len(grams):
        if seen_before(grams[k], table, stamps, mask, stamp):
            for word in range(first + k, first + k + size):
                characters += chars[word]
            k += size
        else:
            k += 1
    return characters


@njit(**COMPILE)
def _gram_rule(exact, chars, first, last, characters, limits, grams, scratch, stamp):
    """The first rule of n-grams that drops a text: 2 to 4 the most frequent one, 5 to 10 all that repeat. Returns 0 for none."""
    table, stamps, counts, firsts = scratch
    words = last - first
    mask = capacity(words) - 1
    for k in range(words):
        grams[k] = exact[first + k]
    for size in range(2, min(words, 10) + 1):
        held = words - size + 1
        for k in range(held):
            grams[k] = grams[k] * BASE + exact[first + k + size - 1]
        limit = limits[2 + size]
        if np.isnan(limit):
            continue
        if size <= 4:
            found = _top_gram(grams[:held], chars, first, size, table, stamps, counts, firsts, mask, stamp + size)
        else:
            found = _repeated_grams(grams[:held], chars, first, size, table, stamps, mask, stamp + size)
        if found / characters > limit:
            return 3 + size
    return 0


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
    scratch = (table, stamps, np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32))
    grams = np.empty(most, dtype=np.uint64)
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
                code = _gram_rule(exact, chars, first[text], first[text + 1], characters, limits, grams, scratch, stamp)
        codes[text] = code
