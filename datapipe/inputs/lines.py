"""Split chunks of bytes into lines without ever holding a line longer than a limit."""

from collections.abc import Iterable, Iterator

TOO_LONG = b"\n"  # marker for a line over the limit: a real line contains no newline


def split_lines(chunks: Iterable[bytes], limit: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the lines whose first byte is in [start, end), without their newline; `TOO_LONG` (by identity) for longer ones.

    The chunks begin at byte `start - 1` (0 for start 0), so that a range that begins right after a newline includes the line
    that starts there. A last line without a newline counts.
    """
    position = max(start - 1, 0)  # of the first pending byte
    skipping = start > 0  # the current line belongs to the previous range
    overlong = False
    pending: list[bytes] = []
    held = 0
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            if not held and not skipping and not overlong and end is not None and position >= end:
                return
            newline = chunk.find(b"\n", at)
            stop = len(chunk) if newline < 0 else newline
            if not skipping and not overlong:
                held += stop - at
                pending.append(chunk[at:stop])
                if held > limit:
                    overlong, held = True, 0
                    pending.clear()
                    yield TOO_LONG
            elif skipping and newline < 0 and end is not None and position + stop - at >= end:
                return  # one line spans the whole range
            position += stop - at + (newline >= 0)
            at = stop + 1
            if newline >= 0:
                if not skipping and not overlong:
                    yield b"".join(pending)
                pending.clear()
                held, skipping, overlong = 0, False, False
    if held and not skipping and not overlong:
        yield b"".join(pending)
