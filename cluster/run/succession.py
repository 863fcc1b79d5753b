"""Successor marks of attempts and groups of ranks, reliable also on NFS.

On an NFS client a listing, a missing name and the result of `stat` may be a minute old, but an existing file has its newest
content whenever it is opened (close-to-open consistency). So each attempt and each group of ranks has a mark: a file that is
empty while it is the newest one, and into which its successor writes its own number.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.names import ENDED, SUCCESSOR


def write_mark(path: Path, number: int) -> None:
    """Write a number into a mark. Any number means that there is a successor, so concurrent writers do no harm."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, str(number).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_mark(path: Path) -> int:
    """Read a mark that was created together with its folder; 0: no successor yet, or no such file."""
    try:
        return _number(path.read_bytes())
    except OSError:
        return 0


def read_mark_afresh(path: Path) -> int:
    """Read a mark that another machine may have just created; 0: no successor yet."""
    return _number(read_afresh(path))


def _number(raw: bytes) -> int:
    digits = raw.strip(b"\0 \n")  # a power cut may leave zeros
    return int(digits) if digits.isdigit() else int(bool(digits))


def mark_succeeded(mark_of: Callable[[int], Path], number: int, *, first: int) -> None:
    """Mark the numbers in [first, number) as succeeded, oldest first, so that a mark implies all earlier marks."""
    oldest = number
    while oldest > first and not read_mark_afresh(mark_of(oldest - 1)):
        oldest -= 1
    for older in range(oldest, number):
        with suppress(FileNotFoundError):  # its folder was never created
            write_mark(mark_of(older), number)


def create_marked_folder(parent: Path, folder_of: Callable[[int], Path], number: int, *, exactly: bool = False) -> int:
    """Create the folder of the first free number from `number` on, exclusively among machines, and return that number.

    The folder appears together with its empty marks. `exactly`: raise FileExistsError if `number` itself is taken.
    """
    temporary = parent / f".new.{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    for mark in (SUCCESSOR, ENDED):
        (temporary / mark).touch()
    while True:
        try:
            temporary.rename(folder_of(number))
            return number
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if exactly:
                shutil.rmtree(temporary)
                raise FileExistsError(errno.EEXIST, "another process was faster", str(folder_of(number))) from None
            number += 1  # another process was faster
