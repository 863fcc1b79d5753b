"""Which GPUs of this machine runs of this user hold: there is no scheduler here that deals them, so each run locks its own."""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.gpus import machine_devices, processes_on


class HeldGpus:
    """The GPUs that one run holds, by locks on files that the kernel frees when this process ends, however it ends."""

    def __init__(self, place: Path | None = None) -> None:
        self._place = place or Path(tempfile.gettempdir())
        self._locks: dict[str, int] = {}

    def take(self, count: int) -> list[str]:
        """Choose so many of the machine's GPUs and hold them: those that nobody uses first, in the machine's order.

        Where too few are free the rest are shared with whoever holds them; `shared` names those.
        """
        devices = machine_devices()
        if not count or len(devices) <= count:  # all, or too few: then the caller refuses
            chosen = devices[:count]
        else:
            busy = processes_on(devices)
            by_wish = sorted(devices, key=lambda name: (name not in self._locks, name in busy))
            free: list[str] = []
            for name in by_wish:
                if len(free) < count and self._lock(name):
                    free.append(name)
            chosen = [*free, *(name for name in by_wish if name not in free)][:count]
        self._release([name for name in self._locks if name not in chosen])
        for name in chosen:
            self._lock(name)
        return sorted(chosen, key=devices.index)

    def shared(self, devices: Sequence[str]) -> list[str]:
        """Those of the devices that another run holds."""
        return [name for name in devices if name not in self._locks]

    def release(self) -> None:
        """Free all of them."""
        self._release([*self._locks])

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)  # while it is locked: see `_lock`
            os.close(self._locks.pop(name))

    def _path(self, name: str) -> Path:
        return self._place / f"ropewalk-gpu-{os.geteuid()}-{name.replace('/', '_')}"

    def _lock(self, name: str) -> bool:
        if name in self._locks:
            return True
        descriptor = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != self._path(name).stat().st_ino:
                raise OSError("it was removed by whoever freed it, as this process opened it")
        except OSError:
            os.close(descriptor)
            return False
        self._locks[name] = descriptor
        return True
