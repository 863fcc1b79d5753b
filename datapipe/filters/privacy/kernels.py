"""First pass over a batch: find the few candidates for personal data, which slower checks then judge."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.kernel import kernel

AT_SIGN, NUMBER, LETTERED, COLONS = 1, 2, 3, 4  # kinds of candidates
LEAST_DIGITS = 7  # in a number
LEAST_LETTERED = 9  # digits and capitals in an identifier with both
SEPARATORS = (32, 40, 41, 45, 46, 47)  # blank ( ) - . /
DIGIT, CAPITAL, SMALL, OTHER = 1, 2, 3, 0


def _classes() -> NDArray[np.uint8]:
    table = np.zeros(256, dtype=np.uint8)
    table[48:58], table[65:91], table[97:123], table[95] = DIGIT, CAPITAL, SMALL, SMALL
    return table


CLASSES = _classes()


@kernel
def find_candidates(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], classes: NDArray[np.uint8], out: NDArray[np.int64]
) -> int:
    """Write a row (kind, text, start, end) for each candidate, by position, to `out`; return their number, which may exceed it.

    A number is digits with at most three of ` -./()` between two of them; LETTERED starts with two capitals and two digits, or
    is a token of digits and capitals; COLONS is a token of hexadecimal digits and colons.
    """
    rows = 0
    for text in range(len(offsets) - 1):
        end = offsets[text + 1]
        at = offsets[text]
        free_from = at  # the end of the last number
        while at < end:
            byte = data[at]
            kind = 0
            begin = at
            stop = at + 1
            if byte == 64:
                kind = AT_SIGN
            elif byte == 58 and at + 1 < end and (data[at + 1] == 58 or classes[data[at + 1]] != OTHER):
                begin, stop, colons = _colons(data, offsets[text], at, end)
                if not colons:
                    at += 1
                    continue
                kind = COLONS
            elif classes[byte] == DIGIT or classes[byte] == CAPITAL:
                if at > offsets[text] and classes[data[at - 1]] != OTHER:
                    at += 1
                    continue
                stop, digits, capitals, small = _token(data, classes, at, end)
                if capitals and not small and digits and stop - at >= 4:
                    two_and_two = (
                        classes[data[at + 1]] == CAPITAL and classes[data[at + 2]] == DIGIT and classes[data[at + 3]] == DIGIT
                    )
                    if digits + capitals >= LEAST_LETTERED or (two_and_two and classes[data[at]] == CAPITAL):
                        kind = LETTERED
                elif capitals == 2 and stop - at == 2 and at + 3 < end and data[at + 2] == 32 and classes[data[at + 3]] == DIGIT:
                    kind = LETTERED
                if kind == 0 and classes[byte] == DIGIT and at >= free_from:
                    stop, digits, dots = _number(data, classes, at, end)
                    free_from = stop
                    if digits >= LEAST_DIGITS or dots >= 3:
                        kind = NUMBER
            if kind:
                if rows < len(out):
                    out[rows, 0], out[rows, 1], out[rows, 2], out[rows, 3] = kind, text, begin, stop
                rows += 1
            at = max(stop, at + 1) if kind != LETTERED else at + 1
    return rows


@kernel
def _token(data: NDArray[np.uint8], classes: NDArray[np.uint8], start: int, end: int) -> tuple[int, int, int, int]:
    digits, capitals, small, at = 0, 0, 0, start
    while at < end and classes[data[at]] != OTHER:
        digits += classes[data[at]] == DIGIT
        capitals += classes[data[at]] == CAPITAL
        small += classes[data[at]] == SMALL
        at += 1
    return at, digits, capitals, small


@kernel
def _number(data: NDArray[np.uint8], classes: NDArray[np.uint8], start: int, end: int) -> tuple[int, int, int]:
    digits, dots, last, at = 0, 0, start, start
    while at < end and at - last <= 4:
        byte = data[at]
        if classes[byte] == DIGIT:
            digits += 1
            dots += at > start and data[at - 1] == 46
            last = at
        elif byte not in SEPARATORS:
            break
        at += 1
    return last + 1, digits, dots


@kernel
def _colons(data: NDArray[np.uint8], first: int, at: int, end: int) -> tuple[int, int, bool]:
    """Return the bounds of the token of hexadecimal digits, dots and colons around a colon, and True if it may be an address."""
    begin = at
    while begin > first and at - begin < 4 and _hexadecimal(data[begin - 1]):
        begin -= 1
    stop, colons, double, digits = at, 0, False, 0
    while stop < end and stop - begin < 46 and (_hexadecimal(data[stop]) or data[stop] == 58 or data[stop] == 46):
        if data[stop] == 58:
            colons += 1
            double = double or (stop + 1 < end and data[stop + 1] == 58)
        digits += data[stop] != 58
        stop += 1
    return begin, stop, (colons >= 6 or (double and colons >= 2)) and digits >= 4


@kernel
def _hexadecimal(byte: int) -> bool:
    return 48 <= byte <= 57 or 97 <= byte <= 102 or 65 <= byte <= 70
