"""Characters at which English tokens are cut, as a table for kernels, and abbreviations that stay whole."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.characters import CODE_POINTS, MARKS_END, categories

PREFIX, SUFFIX, ICON, CURRENCY, LOWER, UPPER, ALPHA, DIGIT, DOT_BEFORE, QUOTE, NOT_LAST = (1 << bit for bit in range(11))
PUNCTUATION = (
    ",:;!?()[]{}<>_#*&\u00bf\u061f\u00a1\u3002\uff1f\uff01\uff0c\u3001\uff1b\uff1a\uff5e\u00b7\u0964\u060c\u06d4\u061b\u066a"
)
QUOTES = (
    "'\"`\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f"
    "\u3010\u3011\u3014\u3015\uff08\uff09"
)
DASHES = "\u2013\u2014"
ELLIPSIS = "\u2026"
NO_ADDRESS_ENDS = ">)],;:'\""
ABBREVIATIONS = ("e.g.", "i.e.", "a.m.", "p.m.", "Mr.", "Mrs.", "Dr.", "vs.", "Inc.", "Co.", "Corp.", "Ltd.", "St.")


@cache
def token_marks() -> NDArray[np.uint16]:
    """Bits of each code point that decide where tokens are cut."""
    characters = np.arange(CODE_POINTS, dtype=np.uint32).view("<U1")
    marks = np.zeros(CODE_POINTS, dtype=np.uint16)
    marks[np.strings.isalpha(characters)] |= ALPHA
    marks[np.strings.isdigit(characters)] |= DIGIT | DOT_BEFORE
    marks[np.strings.islower(characters)] |= LOWER | DOT_BEFORE
    marks[np.strings.isupper(characters)] |= UPPER
    marks[:MARKS_END][categories() == "So"] |= ICON | PREFIX | SUFFIX
    marks[:MARKS_END][categories() == "Sc"] |= CURRENCY | PREFIX
    for members, bits in (
        (PUNCTUATION, PREFIX | SUFFIX | DOT_BEFORE),
        (QUOTES, PREFIX | SUFFIX | DOT_BEFORE | QUOTE),
        (DASHES, PREFIX | SUFFIX),
        (ELLIPSIS, PREFIX | SUFFIX | ICON),
        ("\u00a7%=", PREFIX),
        ("%\u00b2-+", DOT_BEFORE),
        (NO_ADDRESS_ENDS, NOT_LAST),
    ):
        marks[[ord(character) for character in members]] |= bits
    marks.flags.writeable = False
    return marks


@cache
def abbreviations() -> NDArray[np.uint32]:
    """Code points of each abbreviation, one row each, padded with zeros."""
    longest = max(map(len, ABBREVIATIONS))
    rows = np.array([[ord(c) for c in word.ljust(longest, "\0")] for word in ABBREVIATIONS], dtype=np.uint32)
    rows.flags.writeable = False
    return rows
