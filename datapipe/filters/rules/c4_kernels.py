"""C4's rules over a batch: drop lines, write the remaining texts, drop texts."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.filters.rules.gopher_kernels import line_end
from ropewalk.datapipe.text.characters import CLOSING, DECIMAL, SPACE, TERMINAL
from ropewalk.datapipe.text.kernels import BYTES, CODES, COMPILE, FOLD, INTS, OFFSETS, code_point, last_code_point, strip_range

OFF = -1
WIDE = 0x3000  # code points from here on end a sentence without white space after them
LOREM_IPSUM, JAVASCRIPT, POLICIES = 0, 1, 2  # indices in `phrases`; the policies are all that follow
CURLY = 16  # bit for a curly bracket, beside the bits of phrases
CITATION_WORDS = 2  # phrases after the policies: the texts in brackets of citation marks


@njit(**COMPILE)
def _starts_with(data, at, end, phrase):
    if end - at < len(phrase):
        return False
    for k in range(len(phrase)):
        if data[at + k] != phrase[k]:
            return False
    return True


@njit(**COMPILE)
def _citation_end(data, at, end, flags, edit, needed):
    """Return the end of the citation mark (digits or certain words in brackets) at `at`, or `at` if there is none."""
    if data[at] != 91:
        return at
    begin, stop = at + 1, at + 1
    while stop < end:
        code, length = code_point(data, stop)
        if not flags[code] & DECIMAL:
            break
        stop += length
    if stop < end and data[stop] == 93:
        return stop + 1
    if _starts_with(data, begin, end, edit):
        return begin + len(edit)
    if _starts_with(data, begin, end, needed):
        return begin + len(needed)
    return at


@njit(**COMPILE)
def _copy_line(data, start, end, flags, out, to, cut, edit, needed):
    """Copy a line, without its citation marks if `cut`; return the end of the copy."""
    brackets = 0
    for k in range(end - start):
        byte = data[start + k]
        out[to + k] = byte
        brackets += byte == 91
    if not (cut and brackets):
        return to + end - start
    at = start
    while at < end:
        if data[at] == 91:
            behind = _citation_end(data, at, end, flags, edit, needed)
            if behind > at:
                at = behind
                continue
        out[to] = data[at]
        to += 1
        at += 1
    return to


@njit(**COMPILE)
def _ends_well(line, start, end, marks):
    """Return True if a line ends with one of the marks, and not with three points."""
    if start == end or (end - start >= 3 and line[end - 1] == 46 and line[end - 2] == 46 and line[end - 3] == 46):
        return False
    code = last_code_point(line, start, end)[0]
    for mark in marks:
        if code == mark:
            return True
    return False


@njit(**COMPILE)
def _matches(line, at, end, phrase):
    """Return True if a phrase of lower-case ASCII starts at `at`; case is ignored, and the Kelvin sign counts as K."""
    for letter in phrase:
        if at >= end:
            return False
        byte = line[at]
        if 65 <= byte <= 90:
            byte += 32
        if byte == letter:
            at += 1
        elif letter == 107 and byte == 0xE2 and at + 2 < end and line[at + 1] == 0x84 and line[at + 2] == 0xAA:
            at += 3
        else:
            return False
    return True


@njit(**COMPILE)
def _phrases_in(line, start, end, phrases, bounds, heads):
    """Return the phrases that a line contains, as bits, and the bit CURLY for a curly bracket."""
    phrase_bits, curly = 0, 0
    for at in range(start, end - 1):
        byte = line[at]
        curly |= byte == 123
        likely = heads[0, byte] & heads[1, line[at + 1]]
        if likely:
            for k in range(len(bounds) - 1):
                if likely >> k & 1 and not phrase_bits >> k & 1 and _matches(line, at, end, phrases[bounds[k] : bounds[k + 1]]):
                    phrase_bits |= 1 << k
    return phrase_bits | (1 << CURLY if curly or (end > start and line[end - 1] == 123) else 0)


@njit(**COMPILE)
def _sentences(line, start, end, flags):
    """Count sentences. Each ends with a mark, closing quotes or brackets, and white space or the end; a rest counts as one."""
    count, at = 0, start
    under_way, ending = False, False
    while at < end:
        code, length = code_point(line, at)
        flag = flags[code]
        if flag & SPACE:
            if ending:
                count += 1
                under_way, ending = False, False
        elif flag & TERMINAL:
            ending = under_way
            if ending and code >= WIDE:
                count += 1
                under_way, ending = False, False
        elif not flag & CLOSING:
            under_way, ending = True, False
        at += length
    return count + (1 if under_way else 0)


@njit(**COMPILE)
def _line_words(starts, chars, word, last, end):
    """Return the first word after a line, the number of words in the line, and the length of the longest."""
    count, longest = 0, 0
    while word < last and starts[word] < end:
        longest = max(longest, chars[word])
        count += 1
        word += 1
    return word, count, longest


@njit(**COMPILE)
def _line_rule(out, start, end, count, flags, marks, phrases, bounds, heads, options):
    """Return 0 to keep a line, 1 or 2 to drop its text for that reason, -1 to -5 to drop the line for that reason."""
    if options[3] and not _ends_well(out, start, end, marks):
        return -2
    if count < options[1]:
        return -3
    phrase_bits = _phrases_in(out, start, end, phrases, bounds, heads)
    if options[5] and phrase_bits & 1:
        return 1
    if options[6] and phrase_bits & 2:
        return -4
    if options[7] and phrase_bits & (1 << CURLY):
        return 2
    if options[8] and phrase_bits & ((1 << CURLY) - (1 << POLICIES)):
        return -5
    return 0


@njit(**COMPILE)
def _heads(phrases, bounds):
    """Return, for each byte, the phrases that may start with it, and those of which it may be the second byte, as bits.

    Neither byte of a phrase is a K, which would have a second form, the Kelvin sign.
    """
    heads = np.zeros((2, 256), dtype=np.uint16)
    for k in range(len(bounds) - 1):
        for at in range(2):
            letter = phrases[bounds[k] + at]
            heads[at, letter] |= np.uint16(1 << k)
            heads[at, letter - 32] |= np.uint16(1 << k)
    return heads


@njit((CODES, types.int64, types.int64, BYTES, types.int64), **COMPILE)
def _end_text(out, begin, to, flags, code):
    """Strip the remaining text and move it to `begin`; write nothing if the text is dropped."""
    low, high = strip_range(out, begin, to, flags)
    if not code and low == high:
        code = 4
    to = begin
    if not code:
        for k in range(low, high):
            out[to] = out[k]
            to += 1
    return to, code


@njit(
    types.int64(
        BYTES,
        OFFSETS,
        BYTES,
        OFFSETS,
        INTS,
        INTS,
        BYTES,
        OFFSETS,
        FOLD,
        OFFSETS,
        CODES,
        types.int64[::1],
        types.uint8[::1],
        types.int64[::1],
    ),
    **COMPILE,
)
def c4(data, offsets, flags, first, word_start, word_chars, phrases, bounds, marks, options, codes, dropped, out, ends):
    """Write the remaining lines of each text to `out` (up to ends[text]), and the number of the rule that drops it to `codes`.

    `options`: minimum sentences, minimum words in a line, maximum word length, and 0 or 1 for: marks at line ends, citations,
    lorem ipsum, JavaScript, curly brackets, policies. `phrases`: lorem ipsum, javascript, the policies, the citation words.
    `dropped` counts lines by rule: word too long, no mark, too few words, JavaScript, policy. Returns the number of bytes
    written.
    """
    num_phrases = len(bounds) - 1 - CITATION_WORDS
    edit = phrases[bounds[num_phrases] : bounds[num_phrases + 1]]
    needed = phrases[bounds[num_phrases + 1] : bounds[num_phrases + 2]]
    bounds = bounds[: num_phrases + 1]
    heads = _heads(phrases, bounds)
    to = 0
    for text in range(len(codes)):
        begin, at, end = to, offsets[text], offsets[text + 1]
        word, sentences, num_lines, code = first[text], 0, 0, 0
        while at < end and code <= 0:
            stop, following = line_end(data, at, end, flags)
            low, high = strip_range(data, at, stop, flags)
            word, count, longest = _line_words(word_start, word_chars, word, first[text + 1], stop)
            at, copy = following, to + (1 if num_lines else 0)
            copy_end = copy
            code = -1 if options[2] != OFF and longest > options[2] else 0
            if not code:
                copy_end = _copy_line(data, low, high, flags, out, copy, options[4], edit, needed)
                code = _line_rule(out, copy, copy_end, count, flags, marks, phrases, bounds, heads, options)
            if code < 0:
                dropped[-code - 1] += 1
            elif code == 0:
                if sentences < options[0]:
                    sentences += _sentences(out, copy, copy_end, flags)
                if num_lines:
                    out[to] = 10
                num_lines += 1
                to = copy_end
        code = max(code, 0)
        if not code and sentences < options[0]:
            code = 3
        to, codes[text] = _end_text(out, begin, to, flags, code)
        ends[text] = to
    return to
