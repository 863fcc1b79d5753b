"""Words and lines of a batch of texts, in one pass over their bytes; hashes that stand for them.

Texts lie one behind another in `data` (UTF-8); text k is data[offsets[k]:offsets[k + 1]]. A word is what white space
separates, as by str.split; in scripts that write no blanks between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each
character is one, with the marks on it and the punctuation behind it. Equal hashes count as equal words: 64 bits of a
document's words collide once in 10^9 documents.
"""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.text.characters import ALPHANUMERIC, BREAK, SPACE, SYMBOL

BYTES = types.Array(types.uint8, 1, "C", readonly=True)
OFFSETS = types.Array(types.int64, 1, "C", readonly=True)
FOLD = types.Array(types.uint32, 1, "C", readonly=True)
HASHES = types.Array(types.uint64, 1, "C", readonly=True)
INTS = types.Array(types.int32, 1, "C", readonly=True)
CODES = types.uint8[::1]
COMPILE = {"cache": True, "nogil": True, "error_model": "numpy"}

SEED = np.uint64(0xCBF29CE484222325)
MIX = np.uint64(0x9FB21C651E98DF25)
ALL_BITS, LOWER_CASE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x2020202020202020)
NOT_SYMBOL = BREAK  # in a word's flags, where no line break can be: it has a character that is no symbol
UNSPACED = SPACE  # in a word's flags, where no white space can be: it is a character of a script without blanks
FIRST_UNSPACED = 0x0E01


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
def unspaced(code):
    """Whether a character belongs to a script that writes no blanks between words; letters and the marks on them."""
    if code < 0x3000:
        thai_or_lao, burmese = 0x0E01 <= code <= 0x0EDF and code != 0x0E3F, 0x1000 <= code <= 0x109F
        return thai_or_lao or burmese or 0x1780 <= code <= 0x17DD
    if 0xA9E0 <= code <= 0xAA7F:  # Burmese of minorities
        return code <= 0xA9FF or code >= 0xAA60
    kana = (0x3031 <= code <= 0x312F and code != 0x30FB) or 0x31A0 <= code <= 0x31FF or 0x1AFF0 <= code <= 0x1B167
    signs = 0x3005 <= code <= 0x3007 or 0x3021 <= code <= 0x3029 or 0xFF66 <= code <= 0xFF9F
    han = 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF
    return kana or signs or han or 0x20000 <= code <= 0x3FFFF


@njit(inline="always")
def pushed(value, chunk, held, byte):
    """A hash under way (of whole chunks of 8 bytes, the bytes behind them, how many these are) with one more byte."""
    if held == 8:
        return mixed((value ^ chunk) * MIX), np.uint64(byte), 1
    return value, chunk | (np.uint64(byte) << np.uint64(8 * held)), held + 1


@njit(inline="always")
def pushed_character(value, chunk, held, code):
    """A hash under way with one more character: one byte of ASCII, three of others, which none of ASCII equals."""
    if code < 0x80:
        return pushed(value, chunk, held, code)
    for shift in (0, 7, 14):
        byte = ((np.uint64(code) >> np.uint64(shift)) & np.uint64(0x7F)) | np.uint64(0x80)
        value, chunk, held = pushed(value, chunk, held, byte)
    return value, chunk, held


@njit(inline="always")
def ended(value, chunk, held):
    """The hash of what was pushed."""
    return mixed((value ^ chunk) * MIX + np.uint64(held))


@njit(inline="always")
def _whole_chunk(data, at):
    """The 8 bytes from `at`, the first the lowest; an unsigned index, so that this is one load."""
    chunk, place = np.uint64(0), np.uint64(at)
    for k in range(8):
        chunk |= np.uint64(data[place + np.uint64(k)]) << np.uint64(8 * k)
    return chunk


@njit(inline="always")
def _chunk(data, at, count):
    """From 1 to 8 bytes from `at`, the first the lowest, and zeros."""
    if at + 8 <= len(data):
        return _whole_chunk(data, at) & (ALL_BITS >> np.uint64(64 - 8 * count))
    chunk = np.uint64(0)
    for k in range(count):
        chunk |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return chunk


@njit(**COMPILE)
def hash_range(data, start, end):
    """A 64-bit hash of some bytes."""
    value, at = SEED ^ np.uint64(end - start), start
    while at + 8 <= end:
        value = (value ^ _whole_chunk(data, at)) * MIX
        value ^= value >> np.uint64(32)
        at += 8
    rest = _chunk(data, at, end - at) if at < end else np.uint64(0)
    return mixed((value ^ rest) * MIX)


@njit(**COMPILE)
def _hash_long(data, start, end):
    """The hash of more than 8 bytes of ASCII, as if each were pushed."""
    value, at = SEED, start
    while at + 8 < end:
        value = mixed((value ^ _whole_chunk(data, at)) * MIX)
        at += 8
    return ended(value, _chunk(data, at, end - at), end - at)


@njit(**COMPILE)
def _folded(data, start, end, flags, lower):
    """The hash of a word's letters and digits in lower case; 0 for none."""
    value, chunk, held, at = SEED, np.uint64(0), 0, start
    while at < end:
        code, length = code_point(data, at)
        if flags[code] & ALPHANUMERIC or (code >= FIRST_UNSPACED and unspaced(code)):
            value, chunk, held = pushed_character(value, chunk, held, lower[code])
        at += length
    return ended(value, chunk, held) if held else np.uint64(0)


@njit(inline="always")
def _word(data, start, end, flags, lower, marks):
    """The end of the word that begins at `start`, its characters, flags, hash, and hash of letters and digits."""
    common, seen, at = np.uint8(0xFF), np.uint8(0), start
    while at < end:
        flag = marks[data[at]]
        if flag & SPACE:
            break
        common &= flag
        seen |= flag
        at += 1
    if at < end and data[at] >= 0x80:
        return _word_of_any_script(data, start, end, flags, lower)
    if not common & SYMBOL:
        seen |= np.uint8(NOT_SYMBOL)
    count = at - start
    if count > 8:
        return at, count, seen, _hash_long(data, start, at), _folded(data, start, at, flags, lower)
    chunk = _chunk(data, start, count)
    if common & ALPHANUMERIC:
        small = chunk | (LOWER_CASE >> np.uint64(64 - 8 * count))  # of digits it changes nothing
        return at, count, seen, ended(SEED, chunk, count), ended(SEED, small, count)
    return at, count, seen, ended(SEED, chunk, count), _folded(data, start, at, flags, lower)


@njit(**COMPILE)
def _word_of_any_script(data, start, end, flags, lower):
    """What `_word` finds, of a word that has more than ASCII."""
    count, seen, value, chunk, held, alone = 0, np.uint8(0), SEED, np.uint64(0), 0, False
    at = start
    while at < end:
        code, length = code_point(data, at)
        flag = flags[code]
        own = code >= FIRST_UNSPACED and unspaced(code)
        if flag & SPACE or (flag & ALPHANUMERIC and (alone or (own and seen & ALPHANUMERIC))):
            break
        alone = alone or (own and flag & ALPHANUMERIC != 0)
        value, chunk, held = pushed_character(value, chunk, held, code)
        at += length
        count += 1
        seen |= flag if flag & SYMBOL else np.uint8(flag | NOT_SYMBOL)
    plain = _folded(data, start, at, flags, lower)
    return at, count, np.uint8(seen | UNSPACED) if alone else seen, ended(value, chunk, held), plain


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
    marks = np.full(256, np.uint8(SPACE))  # of bytes: where a run of ASCII within a word ends
    marks[:128] = flags[:128]
    for text in range(len(offsets) - 1):
        first[text] = word
        at, end = offsets[text], offsets[text + 1]
        while at < end:
            code, length = code_point(data, at)
            if flags[code] & SPACE:
                at += length
                continue
            start[word] = at
            at, chars[word], kind[word], exact[word], folded[word] = _word(data, at, end, flags, lower, marks)
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
