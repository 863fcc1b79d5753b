"""Locks on this machine's GPUs, which replace a scheduler: each run locks the GPUs that it uses."""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.gpus import machine_devices, processes_on


class HeldGpus:
    """GPUs that one run holds, by file locks that the kernel releases when this process ends for any reason."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._locks: dict[str, int] = {}

    def take(self, count: int) -> list[str]:
        """Choose and hold `count` of the machine's GPUs, preferably unused ones, in the machine's order.

        If too few are free, GPUs that other runs hold are used as well; `shared` lists those.
        """
        devices = machine_devices()
        if not count or len(devices) <= count:  # if there are too few, the caller raises an error
            chosen = devices[:count]
        else:
            busy = processes_on(devices)
            preferred = sorted(devices, key=lambda name: (name not in self._locks, name in busy))
            free: list[str] = []
            for name in preferred:
                if len(free) < count and self._lock(name):
                    free.append(name)
            chosen = [*free, *(name for name in preferred if name not in free)][:count]
        self._release([name for name in self._locks if name not in chosen])
        for name in chosen:
            self._lock(name)
        return sorted(chosen, key=devices.index)

    def unoccupied(self) -> list[str]:
        """Return the machine's GPUs that neither another run nor a process of any user uses, without holding them."""
        devices = machine_devices()
        busy = processes_on(devices)
        return [name for name in devices if name not in busy and not self._is_held(name)]

    def _is_held(self, name: str) -> bool:
        if name in self._locks or not self._path(name).exists():
            return False
        if not self._lock(name):
            return True
        self._release([name])
        return False

    def shared(self, devices: Sequence[str]) -> list[str]:
        """Return the devices that another run holds."""
        return [name for name in devices if name not in self._locks]

    def release(self) -> None:
        self._release([*self._locks])

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)  # before the lock is released: see `_lock`
            os.close(self._locks.pop(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"ropewalk-gpu-{os.geteuid()}-{name.replace('/', '_')}"

    def _lock(self, name: str) -> bool:
        if name in self._locks:
            return True
        descriptor = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != self._path(name).stat().st_ino:
                raise OSError("another process released and removed the file after it was opened")
        except OSError:
            os.close(descriptor)
            return False
        self._locks[name] = descriptor
        return True
