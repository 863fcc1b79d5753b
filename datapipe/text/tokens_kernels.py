"""English tokens of a batch: words with punctuation split off, nearly as spacy's English tokenizer does.

A chunk between white space loses marks at its front and its end, one after another, and is then split at certain inner marks.
URLs and mail addresses stay whole. `marks` has the property bits of each character (see `token_marks`).
"""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.text.characters import ALPHANUMERIC, SPACE, SYMBOL
from ropewalk.datapipe.text.kernels import BYTES, COMPILE, NOT_SYMBOL, OFFSETS, SEED, code_point, finish_hash, push_character
from ropewalk.datapipe.text.token_marks import (
    ALPHA,
    CURRENCY,
    DIGIT,
    DOT_BEFORE,
    ICON,
    LOWER,
    NOT_LAST,
    PREFIX,
    QUOTE,
    SUFFIX,
    UPPER,
)

MARKS = types.Array(types.uint16, 1, "C", readonly=True)
SPECIAL = types.Array(types.uint32, 2, "C", readonly=True)
POINTS = types.uint32[::1]
# argument types of helpers; without them numba would also compile each for literal arguments, such as low = 0
RANGE = (POINTS, types.int64, types.int64)  # points, low, high
TOKENS = (types.int32[::1], types.uint8[::1], types.uint64[::1], types.int64)  # chars, kind, exact, to
DOT, APOSTROPHE, CURLY, PLUS, HYPHEN = 46, 39, 0x2019, 43, 45


@njit(inline="always")
def _has(marks, point, bits):
    return (marks[point] & bits) != 0


@njit(inline="always")
def _lower(point):
    return point + 32 if 65 <= point <= 90 else point


@njit((*RANGE, MARKS), **COMPILE)
def _front(points, low, high, marks):
    """Return the number of characters to split off the front."""
    if points[low] == DOT and low + 1 < high and points[low + 1] == DOT:
        count = 0
        while low + count < high and points[low + count] == DOT:
            count += 1
        return count
    if _has(marks, points[low], PREFIX):
        return 1
    return 1 if points[low] == PLUS and not (low + 1 < high and _has(marks, points[low + 1], DIGIT)) else 0


@njit((*RANGE, MARKS), **COMPILE)
def _end(points, low, high, marks):
    """Return the number of characters to split off the end."""
    last = points[high - 1]
    before = points[high - 2] if high - low > 1 else np.uint32(0)
    if last == DOT and before == DOT:
        count = 0
        while high - count > low and points[high - count - 1] == DOT:
            count += 1
        return count
    if _lower(last) == 115 and (before == APOSTROPHE or before == CURLY):
        return 2
    if _has(marks, last, SUFFIX):
        return 1
    if high - low < 2:
        return 0
    if last == DOT:
        capitals = high - low > 2 and _has(marks, before, UPPER) and _has(marks, points[high - 3], UPPER)
        return 1 if capitals or _has(marks, before, DOT_BEFORE) else 0
    amount = last == PLUS or last == 37 or _has(marks, last, CURRENCY)
    return 1 if amount and _has(marks, before, DIGIT) else 0


@njit((*RANGE, SPECIAL), **COMPILE)
def _is_special(points, low, high, special):
    """Return True if these characters are an abbreviation that stays whole."""
    for row in range(special.shape[0]):
        same = True
        for k in range(special.shape[1]):
            point = points[low + k] if low + k < high else np.uint32(0)
            if point != special[row, k]:
                same = False
                break
        if same:
            return True
    return False


@njit(inline="always")
def _in_word(flags, point):
    return (flags[point] & ALPHANUMERIC) != 0 or point == 95


@njit((*RANGE, BYTES), **COMPILE)
def _is_address(points, low, high, flags):
    """Return True if the chunk starts with `scheme://`, `www.` or `name@host.x`."""
    at = low
    while at < high and 97 <= (points[at] | 32) <= 122 and points[at] < 128:
        at += 1
    if at > low and at + 2 < high and points[at] == 58 and points[at + 1] == 47 and points[at + 2] == 47:
        return True
    if at - low == 3 and at < high and points[at] == DOT:
        www = True
        for k in range(low, at):
            www = www and (points[k] | 32) == 119
        if www:
            return True
    at = low
    while at < high and (_in_word(flags, points[at]) or points[at] == DOT or points[at] == HYPHEN):
        at += 1
    if at == low or at >= high or points[at] != 64:
        return False
    host = at + 1
    at = host
    while at < high and (_in_word(flags, points[at]) or points[at] == HYPHEN):
        at += 1
    return at > host and at + 1 < high and points[at] == DOT and _in_word(flags, points[at + 1])


@njit((*RANGE, BYTES, MARKS, SPECIAL, types.boolean), **COMPILE)
def _whole(points, low, high, flags, marks, special, maybe_address):
    """Return True if the chunk must not be cut any further; `maybe_address`: it contains `:`, `@` or `w`."""
    if points[high - 1] == DOT and high - low <= special.shape[1] and _is_special(points, low, high, special):
        return True
    return maybe_address and not _has(marks, points[high - 1], NOT_LAST) and _is_address(points, low, high, flags)


@njit((*RANGE, BYTES), **COMPILE)
def _contraction(points, low, high, flags):
    """Return the length of n't, 're, 'll, 've, 'm or 'd at the end of a word, after a letter or digit; 0 if there is none."""
    size = high - low
    for length in (3, 2):
        if size <= length or not _in_word(flags, points[high - length - 1]):
            continue
        first, second, third = points[high - length], points[high - length + 1], _lower(points[high - 1])
        if length == 2:
            if (first == APOSTROPHE or first == CURLY) and (third == 109 or third == 100):
                return 2
        elif _lower(first) == 110 and (second == APOSTROPHE or second == CURLY) and third == 116:
            return 3
        elif first == APOSTROPHE or first == CURLY:
            middle = _lower(second)
            if third == 101 and (middle == 114 or middle == 118):
                return 3
            if middle == 108 and third == 108:
                return 3
    return 0


@njit((*RANGE, MARKS), **COMPILE)
def _inside(points, at, high, marks):
    """Return the number of characters from `at`, inside a word, that form a separate token."""
    point, before, behind = points[at], points[at - 1], points[at + 1]
    if point == DOT:
        if behind == DOT:
            count = 0
            while at + count < high and points[at + count] == DOT:
                count += 1
            return count
        return 1 if _has(marks, before, LOWER | QUOTE) and _has(marks, behind, UPPER | QUOTE) else 0
    if _has(marks, point, ICON):
        return 1
    digits = _has(marks, before, DIGIT) and (_has(marks, behind, DIGIT) or behind == HYPHEN)
    if digits and (point == PLUS or point == HYPHEN or point == 42 or point == 94):
        return 1
    letters = _has(marks, before, ALPHA)
    if point == 44:
        return 1 if letters and _has(marks, behind, ALPHA) else 0
    if letters and (point == HYPHEN or point == 0x2013 or point == 0x2014 or point == 126):
        end = at
        while end < high and points[end] == point and end - at < 3:
            end += 1
        joined = end < high and _has(marks, points[end], ALPHA) and (point == HYPHEN or end - at == 1)
        return end - at if joined else 0
    relation = point == 58 or point == 47 or 60 <= point <= 62
    return 1 if relation and (letters or _has(marks, before, DIGIT)) and _has(marks, behind, ALPHA) else 0


@njit((*RANGE, BYTES, *TOKENS), **COMPILE)
def _emit(points, low, high, flags, chars, kind, exact, to):
    """Write a token's number of characters, flags and hash; return the index of the next token."""
    if low >= high:
        return to
    value, chunk, held, union = SEED, np.uint64(0), 0, np.uint8(0)
    for at in range(low, high):
        flag = flags[points[at]]
        union |= flag if flag & SYMBOL else np.uint8(flag | NOT_SYMBOL)
        value, chunk, held = push_character(value, chunk, held, points[at])
    chars[to], kind[to], exact[to] = high - low, union, finish_hash(value, chunk, held)
    return to + 1


@njit((*RANGE, BYTES, MARKS, *TOKENS), **COMPILE)
def _cut_inside(points, low, high, flags, marks, chars, kind, exact, to):
    """Write the tokens of a word that has no marks at its ends."""
    length = _contraction(points, low, high, flags)
    end, start, at = high - length, low, low + 1
    while at < end - 1:
        count = _inside(points, at, end, marks)
        if count:
            to = _emit(points, start, at, flags, chars, kind, exact, to)
            to = _emit(points, at, at + count, flags, chars, kind, exact, to)
            start = at + count
            at = start
        at += 1
    to = _emit(points, start, end, flags, chars, kind, exact, to)
    return _emit(points, end, high, flags, chars, kind, exact, to)


@njit((POINTS, types.int64, BYTES, MARKS, SPECIAL, types.int64[::1], *TOKENS), **COMPILE)
def _cut_chunk(points, high, flags, marks, special, ends, chars, kind, exact, to):
    """Write the tokens of one chunk between white space."""
    low, tails, maybe_address = 0, 0, False
    for at in range(high):
        point = points[at]
        maybe_address = maybe_address or point == 58 or point == 64 or (point | 32) == 119
    while low < high and not _whole(points, low, high, flags, marks, special, maybe_address):
        count = _front(points, low, high, marks)
        if count:
            to = _emit(points, low, low + count, flags, chars, kind, exact, to)
            low += count
            continue
        count = _end(points, low, high, marks)
        if not count:
            break
        ends[tails] = high
        tails += 1
        high -= count
    if low < high:
        if _whole(points, low, high, flags, marks, special, maybe_address):
            to = _emit(points, low, high, flags, chars, kind, exact, to)
        else:
            to = _cut_inside(points, low, high, flags, marks, chars, kind, exact, to)
    while tails:
        tails -= 1
        to = _emit(points, high, ends[tails], flags, chars, kind, exact, to)
        high = ends[tails]
    return to


@njit(types.int64(BYTES, types.int64, types.int64), **COMPILE)
def most_tokens(data, start, end):
    """Return an upper bound of the number of tokens in a range of bytes."""
    others = 0
    for at in range(start, end):
        byte = data[at]
        others += not (48 <= byte <= 57 or 97 <= (byte | 32) <= 122)
    return 2 * others + 2


@njit(
    types.int64(
        BYTES,
        OFFSETS,
        BYTES,
        MARKS,
        SPECIAL,
        types.int32[::1],
        types.uint8[::1],
        types.uint64[::1],
        types.int64[::1],
    ),
    **COMPILE,
)
def split_tokens(data, offsets, flags, marks, special, chars, kind, exact, first):
    """Fill in each token's number of characters, flags and hash; `first` gets the first token of each text, and the end."""
    longest = 1
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    points, ends = np.empty(longest, dtype=np.uint32), np.empty(longest + 1, dtype=np.int64)
    to = 0
    for text in range(len(offsets) - 1):
        first[text] = to
        at, end, held, plain = offsets[text], offsets[text + 1], 0, np.uint8(ALPHANUMERIC)
        while at <= end:
            code, length = code_point(data, at) if at < end else (np.uint32(32), 1)
            at += length
            flag = flags[code]
            if not flag & SPACE:
                points[held] = code
                held += 1
                plain &= flag
                continue
            if held and plain:  # letters and digits alone
                to = _emit(points, 0, held, flags, chars, kind, exact, to)
            elif held:
                to = _cut_chunk(points, held, flags, marks, special, ends, chars, kind, exact, to)
            held, plain = 0, np.uint8(ALPHANUMERIC)
    first[len(offsets) - 1] = to
    return to
