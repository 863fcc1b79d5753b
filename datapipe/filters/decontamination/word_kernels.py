"""Hashes of words, for comparing texts word by word. Case and punctuation do not count."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.kernel import kernel

BASIS = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x100000001B3)
SEPARATES, CHARACTER, PUNCTUATION, FULL_WIDTH = (
    0,
    1,
    2,
    3,
)  # classes of bytes; any other value is the letter that the byte adds to a word
UNSPACED = (0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9)  # first bytes of kana and Han characters: each is a word


def _classes() -> NDArray[np.uint8]:
    """Return the class of each UTF-8 byte, or the letter that it adds to a word: itself in lower case."""
    table = np.zeros(256, dtype=np.uint8)
    for byte in range(256):
        if byte >= 128 or chr(byte).isalnum():
            table[byte] = ord(chr(byte).lower()) if byte < 128 else byte
    table[list(UNSPACED)] = CHARACTER
    table[0xEF] = FULL_WIDTH
    table[[0xC2, 0xE2]] = PUNCTUATION  # mostly no-break space, quotation marks, dashes
    return table


CLASSES = _classes()


@kernel
def _full_width_sign(data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Return True for a sign of U+FF01 to U+FF0F or U+FF1A to U+FF20, such as a full-width comma."""
    return at + 2 < end and data[at + 1] == 0xBC and (data[at + 2] <= 0x8F or 0x9A <= data[at + 2] <= 0xA0)


@kernel
def hash_words(
    data: NDArray[np.uint8],
    start: int,
    end: int,
    classes: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
) -> int:
    """Write the FNV-1a hash and the start of each word of `data[start:end]`; return their number.

    Both arrays hold (end - start) // 2 + 1. A Han or kana character is a word; Latin-1 signs and general punctuation separate
    words, as ASCII punctuation does.
    """
    count = 0
    value = BASIS
    inside = False
    at = start
    while at < end:
        letter = classes[data[at]]
        if letter > FULL_WIDTH or (letter == FULL_WIDTH and not _full_width_sign(data, at, end)):
            if not inside:
                inside = True
                value = BASIS
                starts[count] = at
            value = (value ^ np.uint64(letter)) * PRIME
            at += 1
            continue
        length = 1
        if letter != SEPARATES:
            length = min(2 if data[at] == 0xC2 else 3, end - at)
        if inside:
            hashes[count] = value
            count += 1
            inside = False
        if letter == CHARACTER and not (data[at] == 0xE3 and at + 1 < end and data[at + 1] == 0x80):  # U+3000: punctuation
            value = BASIS
            for step in range(length):
                value = (value ^ np.uint64(data[at + step])) * PRIME
            hashes[count], starts[count] = value, at
            count += 1
        at += length
    if inside:
        hashes[count] = value
        count += 1
    return count
