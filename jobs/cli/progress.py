"""Progress of a transfer, on the standard error."""

import sys
import time

from ropewalk.cluster.text import format_bytes

_SECONDS = 10.0  # between two lines where there is no terminal; there it is a hundredth


class _Shown:
    """The last report of a transfer."""

    label = ""
    time = 0.0
    first_bytes = 0


def show_progress(label: str, present_bytes: int, total_bytes: int) -> None:
    """Write how much of a transfer is done: in place on a terminal, else a line every ten seconds."""
    now, terminal = time.monotonic(), sys.stderr.isatty()
    is_new, is_done = label != _Shown.label, present_bytes >= total_bytes
    if is_new:
        _Shown.first_bytes = present_bytes
    elif not is_done and now - _Shown.time < _SECONDS / (100 if terminal else 1):
        return
    if is_done and (is_new or _Shown.first_bytes >= total_bytes):
        return  # everything was there already
    _Shown.label, _Shown.time = ("" if is_done else label), now
    line = f"{label}: {format_bytes(present_bytes)} of {format_bytes(total_bytes)}"
    sys.stderr.write(f"\r\x1b[K{line}{chr(10) if is_done else ''}" if terminal else f"{line}\n")
    sys.stderr.flush()
