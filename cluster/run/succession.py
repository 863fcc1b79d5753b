"""Who succeeded whom: marks in files that exist before anybody looks at them, and that are opened to be read.

A listing, a name that was missing a moment ago and `stat` may each be a minute old on a client of NFS. What a file holds that
is there already is as new as its opening (close-to-open consistency). So each attempt, and each group of ranks, has a file of
its own, empty as long as it is the newest, into which its successor writes its number.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.fresh_reads import read_afresh

SUCCESSOR = "successor"  # in an attempt's folder: the number of the attempt that came after it
ENDED = "ended"  # in an attempt's folder: empty until there is an outcome.json


def write_mark(path: Path, number: int) -> None:
    """Write a number into a mark. Any number means that there is a successor, so it does not matter who writes last."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, str(number).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_mark(path: Path) -> int:
    """Read the number in a mark that is as old as its folder; 0: no successor yet, or no such file."""
    try:
        return _number(path.read_bytes())
    except OSError:
        return 0


def read_mark_afresh(path: Path) -> int:
    """Read the number in a mark that another machine may just have made; 0: no successor yet."""
    return _number(read_afresh(path))


def _number(raw: bytes) -> int:
    digits = raw.strip(b"\0 \n")  # a power cut may leave zeros
    return int(digits) if digits.isdigit() else int(bool(digits))


def succeed(mark_of: Callable[[int], Path], number: int, *, first: int) -> None:
    """Mark all numbers from `first` to before `number` as succeeded, the oldest first: a mark vouches for those before it."""
    oldest = number
    while oldest > first and not read_mark_afresh(mark_of(oldest - 1)):
        oldest -= 1
    for older in range(oldest, number):
        with suppress(FileNotFoundError):  # it never got to this file system
            write_mark(mark_of(older), number)


def open_folder(parent: Path, folder_of: Callable[[int], Path], number: int, *, exactly: bool = False) -> int:
    """Make the folder of the first free number from `number` on, which no other machine gets; returns that number.

    The folder appears with its marks in it, so that no machine ever sees it without them. With `exactly` no other number will
    do: raises FileExistsError if that number is taken.
    """
    made = parent / f".new.{secrets.token_hex(4)}"
    made.mkdir(parents=True)
    for mark in (SUCCESSOR, ENDED):
        (made / mark).touch()
    while True:
        try:
            made.rename(folder_of(number))
            return number
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if exactly:
                shutil.rmtree(made)
                raise FileExistsError(errno.EEXIST, "another process was faster", str(folder_of(number))) from None
            number += 1  # another was faster
