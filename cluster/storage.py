"""A directory on any file system that fsspec knows, with writes that are whole and a store that may go away."""

import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ropewalk.cluster.errors import DataError, StorageError
from ropewalk.cluster.fresh_reads import list_afresh, read_afresh

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item")

# a client's own complaints, which waiting cannot mend; named, since botocore may not be installed
_ANSWERS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "NoRegionError"}
PATIENCE_SECONDS = 120.0  # a store that is away for longer is an error
AT_ONCE = 16  # requests to an object store, whose answers take long


def retry(
    action: Callable[[], T], what: str, patience_seconds: float = PATIENCE_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Call `action` until the store answers; a missing file is an answer. Raises StorageError after `patience_seconds`."""
    deadline = time.monotonic() + patience_seconds
    delay_seconds = 0.2
    while True:
        try:
            return action()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise
        except Exception as error:  # each store has its own exceptions for "not now"
            if not _transient(error):
                raise
            if time.monotonic() + delay_seconds > deadline:
                raise StorageError(f"{what}: no answer for {patience_seconds:.0f} s: {type(error).__name__}: {error}") from error
            log.warning("%s: %s: %s; trying again in %.1f s", what, type(error).__name__, error, delay_seconds)
            sleep(delay_seconds * random.uniform(0.8, 1.2))
            delay_seconds = min(delay_seconds * 2, 5.0)


def _transient(error: Exception) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if type(error).__name__ in _ANSWERS:
        return False
    name = type(error).__module__.partition(".")[0]
    if name in {"aiohttp", "botocore", "aiobotocore", "urllib3", "requests", "gcsfs", "s3fs", "httpx"}:
        return True
    # s3fs translates a client's errors into plain OSErrors; a full disk or a read-only one will not mend itself
    return isinstance(error, OSError) and error.errno in {None, 5, 16, 104, 110, 111, 116}


class StoragePath:
    """A directory at a local path or any fsspec URL; names below it are relative, with forward slashes."""

    def __init__(self, url: str | Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.url = str(url).rstrip("/") or "/"
        self.patience_seconds = patience_seconds
        try:
            # listings are never cached: another process writes the same directory
            options = {} if "://" not in self.url or self.url.startswith(("file:", "memory:")) else {"use_listings_cache": False}
            self.fs, root = fsspec.core.url_to_fs(self.url, **options)
        except (ValueError, ImportError) as error:
            raise DataError(f"{self.url}: {error}") from None
        self.root = str(root).rstrip("/")

    def __repr__(self) -> str:
        return f"StoragePath({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "patience_seconds": self.patience_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["patience_seconds"])  # type: ignore[misc]

    @property
    def local(self) -> Path | None:
        """The directory on this machine's own file system; None if it lies elsewhere."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def path(self, name: str = "") -> str:
        """Return the path of `name` as the file system itself has it."""
        return f"{self.root}/{name}" if name else self.root

    def child(self, name: str) -> "StoragePath":
        """Return the directory `name` below this one."""
        return StoragePath(f"{self.url}/{name}", self.patience_seconds)

    def _retry(self, action: Callable[[], T], name: str, verb: str) -> T:
        return retry(action, f"{verb} {self.url}/{name}", self.patience_seconds)

    def make(self, name: str = "") -> None:
        """Make a directory if it is missing; so a client of NFS sees one that another machine has just made."""
        if self.local is not None:  # an object store has none
            (self.local / name).mkdir(parents=True, exist_ok=True)

    def exists_afresh(self, name: str) -> bool:
        """Return whether a file exists, as the server of a shared file system has it and not this machine's cache.

        Its directory is listed afresh, by a file with a name that nobody else has: one that was made under the name itself, and
        removed again, could be what another process has just renamed to that name. From then on this machine's client knows a
        file that is there, and no longer believes that there is none.
        """
        if self.local is None:
            return self.exists(name)
        path = self.local / name
        found = path.name in list_afresh(path.parent)
        if found:
            read_afresh(path)
        return found

    def read_afresh(self, name: str) -> bytes:
        """Read a small file that another machine may just have written; empty if there is no such file."""
        if self.local is not None:
            return self._retry(lambda: read_afresh(Path(self.path(name))), name, "read")
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def exists(self, name: str = "") -> bool:
        """Return whether a file or directory exists."""
        return bool(self._retry(lambda: self.fs.exists(self.path(name)), name, "look for"))

    def names(self, name: str = "") -> list[str]:
        """List the names directly in a directory, sorted; empty if it is missing."""

        def listing() -> list[str]:
            try:
                return sorted(str(p).rstrip("/").rpartition("/")[2] for p in self.fs.ls(self.path(name), detail=False))
            except FileNotFoundError:
                return []

        return [n for n in self._retry(listing, name, "list") if n]

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError."""
        return int(self._retry(lambda: self.fs.size(self.path(name)), name, "look at"))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or its bytes from `start` to before `end`. Raises FileNotFoundError."""
        return bytes(self._retry(lambda: self.fs.cat_file(self.path(name), start=start, end=end), name, "read"))

    def each(self, read: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """What `read` returns for each item, in their order; from an object store some are read at a time, by threads."""
        if self.local is not None or len(items) <= 1:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(AT_ONCE, len(items)), "ropewalk-read") as pool:
            return list(pool.map(read, items))

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or none of it."""
        self._retry(lambda: self._write_whole(name, data), name, "write")

    def _write_whole(self, name: str, data: bytes) -> None:
        if self.local is None:
            self.fs.pipe_file(self.path(name), data)  # object stores show a key only when it is complete
            return
        with self.create(name) as stream:
            stream.write(data)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a stream whose content appears under `name` when the block ends well, and not at all when it raises.

        Local files are fsynced and renamed; for a remote place they are spooled to a local temporary file first,
        so that an upload can be tried again as a whole.
        """
        if self.local is not None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # rename is atomic only within one filesystem, so the temporary file sits beside its target
            descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        else:
            descriptor, temporary = tempfile.mkstemp(prefix="ropewalk-upload-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if self.local is not None:
                os.chmod(temporary, 0o644)
                os.replace(temporary, target)
            else:
                self._retry(lambda: self.fs.put_file(temporary, self.path(name)), name, "write")
        finally:
            Path(temporary).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a file or a whole directory, if it exists."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm(self.path(name), recursive=True)

        self._retry(delete, name, "delete")
