"""Pieces of shards of object stores in a folder of this machine: shared by its processes, bounded in size."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from ropewalk.cluster.errors import StorageError
from ropewalk.cluster.process.scratch import outside
from ropewalk.cluster.run.files import CACHE_VARIABLE, cache_dir, ensure_private
from ropewalk.datapipe.loader.blocks import map_file

LOCKS = 256
PIECE_BYTES = 256 << 10  # of a write: for longer ones the kernel looks for large pages, and moves others until it has some
CHECKS = 64  # the size is checked each time this part of the limit was written by one process


def cache_folder(folder: str | None) -> Path:
    """Return the folder of the cache; by default in the temporary folder of the machine, which is on a local disk."""
    if folder is not None:
        return Path(folder)
    if os.environ.get(CACHE_VARIABLE):
        return cache_dir() / "blocks"
    return outside(Path(tempfile.gettempdir())) / f"ropewalk-blocks-{os.getuid()}"


class BlockCache:
    """Files by name, fetched once per machine. The least recently opened ones are removed beyond `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.bytes_fetched = 0
        self._unchecked = limit  # bytes written since the size was checked
        ensure_private(folder)
        if folder.stat().st_uid != os.getuid():
            raise StorageError(f"{folder}: belongs to another user; set loader.cache to a folder of your own")

    def fetch(self, name: str, read: Callable[[], bytes]) -> Path:
        """Return the path of a file, which is made of the bytes that `read` returns if it is missing."""
        path = self.folder / name
        if path.exists():
            return path
        with (self.folder / f".lock-{crc32(name.encode()) % LOCKS}").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # only one process and thread of a machine fetches a file
            if not path.exists():
                self._write(path, read())
        return path

    def map(self, name: str, read: Callable[[], bytes]) -> Any:
        """Map a file into memory, fetching it if it is missing."""
        while True:
            path = self.fetch(name, read)
            with suppress(FileNotFoundError):  # removed by another process just now
                os.utime(path)
                return map_file(path)

    def drop(self, name: str) -> None:
        """Remove a damaged file."""
        (self.folder / name).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        self.bytes_fetched += len(data)
        self._unchecked += len(data)
        if self._unchecked >= self.limit // CHECKS:
            self._unchecked = 0
            self._shrink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                for start in range(0, len(data), PIECE_BYTES):
                    file.write(memoryview(data)[start : start + PIECE_BYTES])
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _shrink(self) -> None:
        with (self.folder / ".shrink").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process does it
                return
            files = []
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
            excess = (
                sum(size for _, size, _ in files) - self.limit + self.limit // 8
            )  # room until the next check of several processes
            for _, size, path in sorted(files):
                if excess <= 0:
                    return
                if size:  # not a lock
                    Path(path).unlink(missing_ok=True)
                    excess -= size
