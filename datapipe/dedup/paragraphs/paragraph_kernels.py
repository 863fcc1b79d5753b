"""Compiled search for paragraphs in a batch of texts: their bounds and hashes."""

from numba import njit

from ropewalk.datapipe.text.kernels import COMPILE, hash_range


@njit(**COMPILE)
def _line(data, at, end):
    """Return the end of the line at `at`, its first visible byte, and the end of its last one (equal for a blank line)."""
    first = last = at
    while at < end and data[at] != 10:
        if data[at] > 32:
            first = at if first == last else first
            last = at + 1
        at += 1
    return at, first, last


@njit(**COMPILE)
def find_paragraphs(data, offsets, by_line, least, columns):
    """Fill in the columns text, start, end, hash and size of each paragraph of at least `least` bytes; return their number.

    Start and end are bytes from the start of the text and include everything up to the next paragraph, for the first one also
    everything before it: cutting all paragraphs leaves nothing of a text.
    """
    rows, starts, ends, hashes, sizes = columns
    count = 0
    for text in range(len(offsets) - 1):
        begin, end = offsets[text], offsets[text + 1]
        at, body, behind, several, held = begin, begin, begin, False, -1
        while at <= end:
            stop, first, last = _line(data, at, end) if at < end else (end, end, end)
            closes = body < behind and (by_line or first == last or at >= end)
            if closes and behind - body >= least:
                held = count
                rows[count], hashes[count], sizes[count] = text, hash_range(data, body, behind), behind - body
                count += 1
            if closes:
                body = behind
            if first < last:
                if body == behind:  # a paragraph begins
                    if held >= 0:
                        ends[held] = at - begin
                        held = -1
                    starts[count] = at - begin if several else 0
                    several, body = True, first
                behind = last
            at = end if stop == end and at < end else stop + 1
        if held >= 0:
            ends[held] = end - begin
    return count
