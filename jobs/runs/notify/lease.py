"""Lease that lets one process at a time mirror a run, across machines; it expires when its holder dies."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.run.files import machine, write_json

RENEW_SECONDS = 5.0
DEAD_SECONDS = 30.0  # without renewal until it expires, by the clock of the waiting process, since clocks of machines differ


class Lease:
    """Right to mirror a run. Call `take` until it returns True, `renew` periodically, and `give_up` at the end."""

    def __init__(self, path: Path) -> None:
        self._path, self._token = path, secrets.token_hex(8)
        self._last_content: object = None
        self._since = self._renewed = 0.0

    def take(self) -> bool:
        """Take the lease, or return False if another process holds it."""
        with _one_at_a_time(self._path):
            return self._take()

    def _take(self) -> bool:
        now, content = time.monotonic(), read_json_afresh(self._path)
        if not content or content.get("token") == self._token or _died_here(content):
            self._write()
            mine: bool = (read_json_afresh(self._path) or {}).get("token") == self._token
            return mine
        if content != self._last_content:
            self._last_content, self._since = content, now
        elif now - self._since > DEAD_SECONDS:
            self._write()
            return False  # another process may take it at the same time; the last writer gets it, as the next call shows
        return False

    def renew(self) -> bool:
        """Renew the lease. Return False if it was lost to a process that considered this one dead."""
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            if (read_json_afresh(self._path) or {}).get("token") != self._token:
                return False
            self._write()
        return True

    def give_up(self) -> None:
        """Release the lease."""
        if (read_json_afresh(self._path) or {}).get("token") == self._token:
            write_json(self._path, {}, durable=False)

    def _write(self) -> None:
        self._renewed = time.monotonic()
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, {"token": self._token, **_process(os.getpid()), "time": time.time()}, durable=False)


@cache
def _process(pid: int) -> dict[str, object]:
    return {"machine": machine(), "pid": pid, "started": psutil.Process(pid).create_time()}


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Lock the lease, so that two processes cannot both succeed a dead owner.

    On a file system without locks (Lustre without `flock`) this can happen within the same millisecond.
    """
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("a") as stream:  # closing it releases the lock
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _died_here(owner: dict[str, object]) -> bool:
    """Return True if the owner was a process of this machine that has exited."""
    if owner.get("machine") != machine():
        return False
    try:
        return psutil.Process(int(str(owner["pid"]))).create_time() != owner["started"]
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return True
