"""Bounds the size of files that processes append to: a file that is too large is moved aside, one predecessor is kept."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 64 << 20  # of a file; its predecessor may be a little larger
TAIL_BYTES = 1 << 16


def predecessor(path: Path) -> Path:
    """Return the file with the earlier content of a rotated file."""
    return path.with_name(f"{path.name}.1")


def rotate(path: Path) -> None:
    """Move the content of a file to its predecessor if it is too large.

    Writers keep the file open, so it is copied and truncated; they must append. A line that is written between the two steps,
    which follow each other immediately, is lost.
    """
    if path.stat().st_size <= MOST_BYTES:
        return
    with path.open("r+b") as source:
        fcntl.flock(source, fcntl.LOCK_EX)  # the virtual nodes of one machine share a folder
        if os.fstat(source.fileno()).st_size <= MOST_BYTES:
            return
        with predecessor(path).open("w+b") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            start = target.seek(max(0, target.tell() - TAIL_BYTES))
            if (newline := target.read().rfind(b"\n")) >= 0:
                target.truncate(start + newline + 1)  # the rest is half of a line that is being written
        source.truncate(0)


def rotate_logs(folder: Path) -> None:
    """Rotate the logs in and below a folder to which processes of this machine write. Raises OSError if a disk is full."""
    for path in set(_open_logs(folder.resolve())):
        with suppress(FileNotFoundError):
            rotate(path)


def _open_logs(folder: Path) -> Iterator[Path]:
    """Yield the logs that are stdout or stderr of processes that this user may inspect."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for descriptor in (1, 2):
            with suppress(OSError):  # the process has ended, or belongs to another user
                path = Path(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
                if path.suffix == ".log" and path.is_relative_to(folder):
                    yield path
