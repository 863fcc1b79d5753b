"""Directories on any fsspec file system, with atomic writes and retries while a store is unavailable."""

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

# client-side errors that a retry cannot fix; by name, since botocore may not be installed
_PERMANENT = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "NoRegionError"}
PATIENCE_SECONDS = 120.0  # a store that does not answer for longer is an error
AT_ONCE = 16  # parallel requests to an object store, which has a high latency


def retry(
    action: Callable[[], T], what: str, patience_seconds: float = PATIENCE_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Call `action`, and repeat it on transient errors. Raises StorageError after `patience_seconds`.

    A missing file or missing permission is raised at once. `what` names the operation in messages.
    """
    deadline = time.monotonic() + patience_seconds
    delay_seconds = 0.2
    while True:
        try:
            return action()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise
        except Exception as error:  # each store has its own exceptions for transient errors
            if not _transient(error):
                raise
            if time.monotonic() + delay_seconds > deadline:
                raise StorageError(f"{what}: no answer for {patience_seconds:.0f} s: {type(error).__name__}: {error}") from error
            log.warning("%s: %s: %s; retrying in %.1f s", what, type(error).__name__, error, delay_seconds)
            sleep(delay_seconds * random.uniform(0.8, 1.2))
            delay_seconds = min(delay_seconds * 2, 5.0)


def _transient(error: Exception) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if type(error).__name__ in _PERMANENT:
        return False
    name = type(error).__module__.partition(".")[0]
    if name in {"aiohttp", "botocore", "aiobotocore", "urllib3", "requests", "gcsfs", "s3fs", "httpx"}:
        return True
    # s3fs turns client errors into plain OSErrors. A full or read-only disk is permanent.
    return isinstance(error, OSError) and error.errno in {None, 5, 16, 104, 110, 111, 116}


class StoragePath:
    """A directory at a local path or fsspec URL. Names of its files are relative, with forward slashes."""

    def __init__(self, url: str | Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.url = str(url).rstrip("/") or "/"
        self.patience_seconds = patience_seconds
        try:
            # never cache listings: other processes write to the same directory
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
        """Local path of the directory, or None if it is not on a local file system."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def path(self, name: str = "") -> str:
        """Return the path of `name` in the terms of the underlying file system."""
        return f"{self.root}/{name}" if name else self.root

    def child(self, name: str) -> "StoragePath":
        return StoragePath(f"{self.url}/{name}", self.patience_seconds)

    def _retry(self, action: Callable[[], T], name: str, verb: str) -> T:
        return retry(action, f"{verb} {self.url}/{name}", self.patience_seconds)

    def make(self, name: str = "") -> None:
        """Make a directory if it is missing. On NFS this also reveals a directory that another machine has just made."""
        if self.local is not None:  # object stores have no directories
            (self.local / name).mkdir(parents=True, exist_ok=True)

    def exists_afresh(self, name: str) -> bool:
        """Return True if a file exists on the server of a shared file system, bypassing this machine's cache.

        The directory is listed with a probe file of a unique name. A probe under `name` itself is not safe: removing it could
        remove a file that another process has just renamed to `name`. An existing file is read too, which also corrects a
        cached negative entry of this machine's NFS client.
        """
        if self.local is None:
            return self.exists(name)
        path = self.local / name
        exists = path.name in list_afresh(path.parent)
        if exists:
            read_afresh(path)
        return exists

    def read_afresh(self, name: str) -> bytes:
        """Read a small file that another machine may have just written; return no bytes if there is no such file."""
        if self.local is not None:
            return self._retry(lambda: read_afresh(Path(self.path(name))), name, "read")
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def exists(self, name: str = "") -> bool:
        return bool(self._retry(lambda: self.fs.exists(self.path(name)), name, "look for"))

    def names(self, name: str = "") -> list[str]:
        """List the names directly in a directory, sorted; return an empty list if it is missing."""

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
        """Read a file, or its bytes in [start, end). Raises FileNotFoundError."""
        return bytes(self._retry(lambda: self.fs.cat_file(self.path(name), start=start, end=end), name, "read"))

    def each(self, read: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """Return the result of `read` for each item, in order. Items of an object store are read in parallel threads."""
        if self.local is not None or len(items) <= 1:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(AT_ONCE, len(items)), "ropewalk-read") as pool:
            return list(pool.map(read, items))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see all of it or nothing."""
        self._retry(lambda: self._write_whole(name, data), name, "write")

    def _write_whole(self, name: str, data: bytes) -> None:
        if self.local is None:
            self.fs.pipe_file(self.path(name), data)  # object stores show a key only when it is complete
            return
        with self.create(name) as stream:
            stream.write(data)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a stream whose content appears under `name` when the block ends, and never if the block raises.

        Local files are fsynced and renamed. For a remote store the content goes to a local temporary file first,
        so that the whole upload can be retried.
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
