"""Who mirrors a run now: one process at a time, on whatever machine; that of a process that died is free after a while."""

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
DEAD_SECONDS = 30.0  # nobody has renewed it for so long, by the clock of whoever waits for it: clocks of machines differ


class Lease:
    """The right to mirror a run. `take` until it is held, `renew` now and then, `give_up` at the end."""

    def __init__(self, path: Path) -> None:
        self._path, self._token = path, secrets.token_hex(8)
        self._seen: object = None
        self._since = self._renewed = 0.0

    def take(self) -> bool:
        """Take the lease if nobody else has it. False: somebody has; ask again."""
        with _one_at_a_time(self._path):
            return self._take()

    def _take(self) -> bool:
        now, found = time.monotonic(), read_json_afresh(self._path)
        if not found or found.get("token") == self._token or _died_here(found):
            self._write()
            mine: bool = (read_json_afresh(self._path) or {}).get("token") == self._token
            return mine
        if found != self._seen:
            self._seen, self._since = found, now
        elif now - self._since > DEAD_SECONDS:
            self._write()
            return False  # if another one took it just now too, the last to write has it: look again
        return False

    def renew(self) -> bool:
        """Keep the lease; False: it was lost to somebody who took this process for dead."""
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            if (read_json_afresh(self._path) or {}).get("token") != self._token:
                return False
            self._write()
        return True

    def give_up(self) -> None:
        """Leave the lease to whoever wants it."""
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
    """Let one process at a time look at a lease and take it: two that find a dead owner would both be its successor.

    Where the file system has no such locks (Lustre without `flock`), two that look in the same millisecond may.
    """
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("a") as stream:  # unlocked as it is closed
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _died_here(owner: dict[str, object]) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    if owner.get("machine") != machine():
        return False
    try:
        return psutil.Process(int(str(owner["pid"]))).create_time() != owner["started"]
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return True
