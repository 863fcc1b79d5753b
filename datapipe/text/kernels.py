"""Words and lines of a batch of texts, and their hashes, in one pass over the bytes.

Texts are concatenated in `data` (UTF-8); text k is data[offsets[k]:offsets[k + 1]]. Words are separated by white space, as in
str.split; in scripts written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each character is a word, with the
marks on it and the punctuation that follows. Words with equal hashes count as equal: with 64 bits, two words of a document
collide once in 10^9 documents.
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
RANGE = (BYTES, types.int64, types.int64)  # data, start, end; with types, a helper is compiled once for all callers
COMPILE = {"cache": True, "nogil": True, "error_model": "numpy"}

SEED = np.uint64(0xCBF29CE484222325)
MIX = np.uint64(0x9FB21C651E98DF25)
ALL_BITS, LOWER_CASE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x2020202020202020)
NOT_SYMBOL = BREAK  # in the flags of a word, which has no line break: at least one character is not a symbol
UNSPACED = SPACE  # in the flags of a word, which has no white space: a character of a script without spaces
FIRST_UNSPACED = 0x0E01


@njit(inline="always")
def code_point(data, at):
    """Return the character that starts at a byte and its length in bytes; Arrow strings are valid UTF-8."""
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


@njit(RANGE, **COMPILE)
def last_code_point(data, start, end):
    """Return the last character before `end` and its length in bytes; start < end."""
    at = end - 1
    while at > start and (data[at] & 0xC0) == 0x80:
        at -= 1
    return code_point(data, at)


@njit((*RANGE, BYTES), **COMPILE)
def strip_range(data, start, end, flags):
    """Return the range without white space at both ends, as str.strip does."""
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
def mix_bits(value):
    """Return the number with its bits mixed."""
    value = np.uint64(value) ^ (np.uint64(value) >> np.uint64(32))
    value = value * MIX
    return value ^ (value >> np.uint64(29))


@njit(**COMPILE)
def is_unspaced(code):
    """Return True for a letter, or a mark on one, of a script written without spaces between words."""
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
def push_byte(value, chunk, held, byte):
    """Add a byte to an unfinished hash: value of the full 8-byte chunks, current chunk, number of bytes in it."""
    if held == 8:
        return mix_bits((value ^ chunk) * MIX), np.uint64(byte), 1
    return value, chunk | (np.uint64(byte) << np.uint64(8 * held)), held + 1


@njit(inline="always")
def push_character(value, chunk, held, code):
    """Add a character to an unfinished hash: ASCII as one byte, others as three bytes above 127."""
    if code < 0x80:
        return push_byte(value, chunk, held, code)
    for shift in (0, 7, 14):
        byte = ((np.uint64(code) >> np.uint64(shift)) & np.uint64(0x7F)) | np.uint64(0x80)
        value, chunk, held = push_byte(value, chunk, held, byte)
    return value, chunk, held


@njit(inline="always")
def finish_hash(value, chunk, held):
    """Return the hash of all bytes that were added."""
    return mix_bits((value ^ chunk) * MIX + np.uint64(held))


@njit(inline="always")
def _whole_chunk(data, at):
    """Return the 8 bytes from `at`, little-endian; the unsigned index makes this a single load."""
    chunk, begin = np.uint64(0), np.uint64(at)
    for k in range(8):
        chunk |= np.uint64(data[begin + np.uint64(k)]) << np.uint64(8 * k)
    return chunk


@njit(inline="always")
def _chunk(data, at, count):
    """Return 1 to 8 bytes from `at`, little-endian, padded with zeros."""
    if at + 8 <= len(data):
        return _whole_chunk(data, at) & (ALL_BITS >> np.uint64(64 - 8 * count))
    chunk = np.uint64(0)
    for k in range(count):
        chunk |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return chunk


@njit(RANGE, **COMPILE)
def hash_range(data, start, end):
    """Return a 64-bit hash of a range of bytes."""
    value, at = SEED ^ np.uint64(end - start), start
    while at + 8 <= end:
        value = (value ^ _whole_chunk(data, at)) * MIX
        value ^= value >> np.uint64(32)
        at += 8
    rest = _chunk(data, at, end - at) if at < end else np.uint64(0)
    return mix_bits((value ^ rest) * MIX)


@njit(**COMPILE)
def _hash_long(data, start, end):
    """Return the hash of more than 8 ASCII bytes, the same as if each were pushed."""
    value, at = SEED, start
    while at + 8 < end:
        value = mix_bits((value ^ _whole_chunk(data, at)) * MIX)
        at += 8
    return finish_hash(value, _chunk(data, at, end - at), end - at)


@njit(**COMPILE)
def _hash_folded(data, start, end, flags, lower):
    """Return the hash of a word's letters and digits in lower case; 0 if it has none."""
    value, chunk, held, at = SEED, np.uint64(0), 0, start
    while at < end:
        code, length = code_point(data, at)
        if flags[code] & ALPHANUMERIC or (code >= FIRST_UNSPACED and is_unspaced(code)):
            value, chunk, held = push_character(value, chunk, held, lower[code])
        at += length
    return finish_hash(value, chunk, held) if held else np.uint64(0)


@njit(inline="always")
def _word(data, start, end, flags, lower, marks):
    """Return the end of the word at `start`, its number of characters, flags, hash, and hash of letters and digits."""
    common, union, at = np.uint8(0xFF), np.uint8(0), start
    while at < end:
        flag = marks[data[at]]
        if flag & SPACE:
            break
        common &= flag
        union |= flag
        at += 1
    if at < end and data[at] >= 0x80:
        return _word_of_any_script(data, start, end, flags, lower)
    if not common & SYMBOL:
        union |= np.uint8(NOT_SYMBOL)
    count = at - start
    if count > 8:
        return at, count, union, _hash_long(data, start, at), _hash_folded(data, start, at, flags, lower)
    chunk = _chunk(data, start, count)
    if common & ALPHANUMERIC:
        small = chunk | (LOWER_CASE >> np.uint64(64 - 8 * count))  # digits have this bit already
        return at, count, union, finish_hash(SEED, chunk, count), finish_hash(SEED, small, count)
    return at, count, union, finish_hash(SEED, chunk, count), _hash_folded(data, start, at, flags, lower)


@njit(**COMPILE)
def _word_of_any_script(data, start, end, flags, lower):
    """Return the result of `_word` for a word with characters beyond ASCII."""
    count, union, value, chunk, held, alone = 0, np.uint8(0), SEED, np.uint64(0), 0, False
    at = start
    while at < end:
        code, length = code_point(data, at)
        flag = flags[code]
        single = code >= FIRST_UNSPACED and is_unspaced(code)
        if flag & SPACE or (flag & ALPHANUMERIC and (alone or (single and union & ALPHANUMERIC))):
            break
        alone = alone or (single and flag & ALPHANUMERIC != 0)
        value, chunk, held = push_character(value, chunk, held, code)
        at += length
        count += 1
        union |= flag if flag & SYMBOL else np.uint8(flag | NOT_SYMBOL)
    plain = _hash_folded(data, start, at, flags, lower)
    return at, count, np.uint8(union | UNSPACED) if alone else union, finish_hash(value, chunk, held), plain


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
    """Fill in each word's first byte, number of characters, flags, hash, and hash of letters and digits in lower case (0: none).

    `first` gets the first word of each text, and the end. Returns the number of words.
    """
    word = 0
    marks = np.full(256, np.uint8(SPACE))  # flags of each byte; a byte beyond ASCII ends the fast path, as white space does
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
    """Fill in the first byte, end and number of characters of each line; return the number of lines."""
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
    """Return the number of newlines."""
    count = 0
    for byte in data:
        count += byte == 10
    return count
