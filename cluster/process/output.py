"""Log format and output files of processes."""

import io
import logging
import os
import re
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

MOST_RANK_LOGS = 64  # ranks of a group that have a log each
LONGEST_LINE_BYTES = 1 << 16  # longer lines are split
RANK_LINE = re.compile(r"rank (\d+) \| ")  # beginning of a rank's lines in a log that ranks share


def rank_prefix(rank: int) -> str:
    """Return the beginning of a rank's lines in a log that the ranks of a node share."""
    return f"rank {rank} | "


def rank_log(rank: int, node: int, num_ranks: int) -> str:
    """Return the name of a rank's log; in a large group the ranks of a node share one, except rank 0."""
    return f"ranks-{node}.log" if rank and num_ranks > MOST_RANK_LOGS else f"rank-{rank}.log"


def redirect_output(target: Path | Connection, prefix: str = "") -> None:
    """Append this process's stdout and stderr to a log file, or send them to a pipe.

    With a `prefix`, for a log that processes share, Python's output is written in whole lines that begin with it; what
    compiled code and children print arrives as it is. Call `end_output` before the process ends.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with target.open("ab", buffering=0) if isinstance(target, Path) else target as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if prefix:
        _redirected[:] = [_Lines(descriptor, prefix) for descriptor in (1, 2)]
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(lines, "utf-8", "backslashreplace", write_through=True)  # type: ignore[type-var]
            for lines in _redirected
        )
    elif _redirected:
        _redirected.clear()
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def end_output() -> None:
    """Write the last line of a redirected output even if it is incomplete."""
    for lines in _redirected:  # a program may have replaced sys.stdout
        lines.end_line()


class _Lines(io.RawIOBase):
    """Writes whole lines with a prefix, each with one system call, so that those of other processes come before or after."""

    def __init__(self, descriptor: int, prefix: str) -> None:
        self._descriptor, self._prefix = descriptor, prefix.encode()
        self._rest, self._lock = b"", threading.Lock()

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        with self._lock:
            *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
            if len(self._rest) > LONGEST_LINE_BYTES:
                lines, self._rest = [*lines, self._rest], b""
            if lines:
                os.write(self._descriptor, b"".join(b"%b%b\n" % (self._prefix, line) for line in lines))
        return len(data)

    def end_line(self) -> None:
        if self._rest:
            self.write(b"\n")


def configure_logging(label: str) -> None:
    """Set the log format: one line per event, with time and `label`, this process's name. $ROPEWALK_LOG_LEVEL sets the level."""
    logging.basicConfig(
        level=os.environ.get("ROPEWALK_LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s {label} %(levelname)s %(name)s: %(message)s",
        force=True,
    )


_redirected: list[_Lines] = []  # stdout and stderr of this process, if their lines have a prefix
