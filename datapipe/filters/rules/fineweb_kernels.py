"""FineWeb's rules over a batch: the number of the first rule that drops each text, or 0."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.filters.rules.gopher_kernels import LIMITS
from ropewalk.datapipe.text.characters import SPACE, TERMINAL
from ropewalk.datapipe.text.kernels import BYTES, CODES, COMPILE, INTS, OFFSETS, code_point, hash_range, last_code_point
from ropewalk.datapipe.text.seen_kernels import add_key, capacity


@njit(**COMPILE)
def _blank(data, start, end, flags):
    at = start
    while at < end:
        code, length = code_point(data, at)
        if not flags[code] & SPACE:
            return False
        at += length
    return True


@njit(types.void(BYTES, OFFSETS, BYTES, INTS, INTS, INTS, OFFSETS, types.int64, LIMITS, CODES), **COMPILE)
def fineweb(data, line_first, flags, line_start, line_end, line_chars, word_first, short, limits, codes):
    """Apply the rules in the order of `limits`: share of lines that end a sentence, of short lines, of characters in repeated
    lines, newlines per word. Blank lines do not count; a short line has at most `short` characters.
    """
    most = 1
    for text in range(len(codes)):
        most = max(most, line_first[text + 1] - line_first[text])
    table, stamps = np.empty(capacity(most), dtype=np.uint64), np.zeros(capacity(most), dtype=np.int64)
    for text in range(len(codes)):
        low, high = line_first[text], line_first[text + 1]
        mask = capacity(high - low) - 1
        lines, punctuated, brief, repeated, characters = 0, 0, 0, 0, 0
        for line in range(low, high):
            start, end = line_start[line], line_end[line]
            characters += line_chars[line]
            if _blank(data, start, end, flags):
                continue
            lines += 1
            punctuated += (flags[last_code_point(data, start, end)[0]] & TERMINAL) != 0
            brief += line_chars[line] <= short
            if add_key(hash_range(data, start, end), table, stamps, mask, text + 1):
                repeated += line_chars[line]
        code = 0
        if lines:
            if punctuated / lines < limits[0]:
                code = 1
            elif brief / lines > limits[1]:
                code = 2
            elif repeated / characters > limits[2]:
                code = 3
            elif (high - low - 1) / max(word_first[text + 1] - word_first[text], 1) > limits[3]:
                code = 4
        codes[text] = code
