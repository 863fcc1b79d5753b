"""Store of fetched models and data sets: each content once, a folder per version with links to it, shared by users of a group.

STORE/blobs/sha256-HEX                  contents; HEX.partial while they are fetched, by whichever process
STORE/models/ORG/NAME@COMMIT/...        a complete version; likewise tokenizers/, data/, files/
STORE/refs/ORG/NAME/REVISION            commit that a branch or tag last meant
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from ropewalk.cluster.errors import ConfigError, DataError, RopewalkError, StorageError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.hub.choose import INDEX
from ropewalk.cluster.hub.source import RateLimitedError, RemoteFile, Source
from ropewalk.cluster.run.files import make_private, sync_folder, write_atomically
from ropewalk.cluster.run.names import STORE_VARIABLE
from ropewalk.cluster.text import format_bytes

AT_ONCE = 4  # files that are fetched at the same time
PATIENCE_SECONDS = 120.0  # without a byte
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # a repetition does not help
MARGIN_BYTES = 64 << 20  # of free space beside the files


def version_folder(folder: str, source: Source, selection: str = "") -> str:
    """Return the path of a version in the store. `selection`: part of the repository, which has a folder of its own."""
    suffix = f"-{hashlib.sha256(selection.encode()).hexdigest()[:8]}" if selection else ""
    return f"{folder}/{source.name}@{source.version}{suffix}"


class Store:
    """A folder whose mode decides who else can use the store: that of run directories, unless it exists."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def commit_of(self, repository: str, revision: str | None) -> str | None:
        """Return the commit that a branch or tag meant when it was last looked up, or None."""
        try:
            return self._reference(repository, revision).read_text().strip()
        except OSError:
            return None

    def remember_commit(self, repository: str, revision: str | None, commit: str) -> None:
        """Record the commit that a branch or tag means now."""
        reference = self._reference(repository, revision)
        if self.commit_of(repository, revision) != commit:
            self._make(reference.parent)
            write_atomically(reference, f"{commit}\n")
            reference.chmod(self._mode() & 0o666)

    def _reference(self, repository: str, revision: str | None) -> Path:
        return self.root / "refs" / repository / (revision or "main").replace("/", "--")

    def has(self, path: str) -> bool:
        """Return True if the folder of a version is complete."""
        return (self.root / path).exists()

    def fetch(self, path: str, source: Source, files: Sequence[RemoteFile]) -> Path:
        """Bring files of a source into the folder `path` of the store, unless it is complete, and return the folder.

        A fetch that was killed goes on where it stopped. Raises ConfigError if there is no space, DataError for content that
        does not match its digest, StorageError if the source does not answer.
        """
        target = self.root / path
        if target.exists():
            return target
        self._make(self.root / "blobs")
        self._make(target.parent)
        unique = list({file.digest: file for file in files}.values())
        sizes = {file.digest: min(self._size(file), file.size) for file in unique}
        total = sum(file.size for file in unique)
        self._check_space(total - sum(sizes.values()), source)
        lock, stopped = threading.Lock(), threading.Event()

        def advance(file: RemoteFile, size: int) -> None:
            if stopped.is_set():
                raise StorageError(f"{source.label}: stopped")
            with lock:
                sizes[file.digest] = size
                progress.show(source.label, sum(sizes.values()), total)

        progress.show(source.label, sum(sizes.values()), total)
        with ThreadPoolExecutor(AT_ONCE, "ropewalk-fetch") as pool:
            futures = [pool.submit(self._fetch_file, file, partial(advance, file)) for file in unique]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # also a Ctrl-C, which reaches only this thread
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._link(target, source, files)
        return target

    def _blob(self, file: RemoteFile) -> Path:
        return self.root / "blobs" / file.digest

    def _size(self, file: RemoteFile) -> int:
        for path in (self._blob(file), _unfinished(self._blob(file))):
            with suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def _check_space(self, needed: int, source: Source) -> None:
        free = shutil.disk_usage(self.root).free
        if needed + MARGIN_BYTES > free:
            raise ConfigError(
                f"{source.label}: {format_bytes(needed)} are to be fetched, and {self.root} has {format_bytes(free)} free; free"
                f" space there, or set ${STORE_VARIABLE} to a folder on another file system that the nodes see"
            )

    def _fetch_file(self, file: RemoteFile, advance: Callable[[int], None]) -> None:
        blob = self._blob(file)
        with suppress(OSError):  # missing, or another user's
            os.utime(blob)  # `gc` keeps what is young
        if blob.exists():
            return advance(file.size)
        with self._partial_file(blob) as stream:
            if blob.exists():  # another process was faster
                _unfinished(blob).unlink(missing_ok=True)
                return advance(file.size)
            for is_last in (False, True):
                digest = _receive(file, stream, advance)
                if file.digest.startswith("etag-") or digest == file.digest:
                    break
                stream.truncate(0)  # such as after a power cut, or a file that was changed
                if is_last:
                    raise DataError(f"{file.name}: its content does not match its digest {file.digest}; try again later")
            os.fsync(stream.fileno())
            _unfinished(blob).replace(blob)

    @contextmanager
    def _partial_file(self, blob: Path) -> Iterator[IO[bytes]]:
        """Open the unfinished content of a blob; other processes that fetch it wait until this one is done or dead."""
        with _unfinished(blob).open("a+b", buffering=0) as stream:
            with suppress(PermissionError):  # another user's file
                os.fchmod(stream.fileno(), self._mode() & 0o666)
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _link(self, target: Path, source: Source, files: Sequence[RemoteFile]) -> None:
        """Make the folder of a version, complete or not at all."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            self._make(temporary)
            for file in files:
                path = temporary / file.name
                if not path.resolve().is_relative_to(temporary.resolve()):
                    raise DataError(f"{source.label}: the file name {file.name!r} leads out of the repository; do not use it")
                self._make(path.parent)
                try:
                    os.link(self._blob(file), path)
                except FileNotFoundError:
                    raise
                except OSError:  # a file system without hard links
                    path.symlink_to(os.path.relpath(self._blob(file), path.parent))
            _check_shards(temporary, source)
            sync_folder(temporary)
            temporary.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        """Make a folder in the store and the missing ones above it, with the mode of the store's."""
        if folder == self.root:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                make_private(folder)
            return
        self._make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(self._mode())

    def _mode(self) -> int:
        return stat.S_IMODE(self.root.stat().st_mode)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _unfinished(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.partial")


def _check_shards(folder: Path, source: Source) -> None:
    with suppress(FileNotFoundError):
        shards = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        if missing := sorted(name for name in shards if not (folder / name).exists()):
            raise ConfigError(f"{source.label}: {INDEX} names {missing[0]}, which the repository lacks; name another revision")


def _receive(file: RemoteFile, stream: IO[bytes], advance: Callable[[int], None]) -> str:
    """Append what is missing of a file, and return the digest of the whole. Raises StorageError after two minutes of silence."""
    size = stream.seek(0, os.SEEK_END)
    if size > file.size:
        size = stream.truncate(0)
    content = hashlib.sha256() if not file.digest.startswith("git-") else hashlib.sha1(f"blob {file.size}\0".encode())  # noqa: S324
    stream.seek(0)
    while chunk := stream.read(1 << 20):
        content.update(chunk)
    deadline, delay_seconds = time.monotonic() + PATIENCE_SECONDS, 0.2
    while size < file.size:
        try:
            for chunk in file.read(size):
                if size + len(chunk) > file.size:
                    raise DataError(f"{file.name}: is longer than its {file.size} bytes; try again later")
                stream.write(chunk)
                content.update(chunk)
                size += len(chunk)
                deadline, delay_seconds = time.monotonic() + PATIENCE_SECONDS, 0.2
                advance(size)
            if size < file.size:
                raise ConnectionError("the connection ended too early")
        except RateLimitedError as limit:
            progress.notify(f"{file.name}: {limit}")
            time.sleep(limit.seconds)
            deadline = time.monotonic() + PATIENCE_SECONDS
        except RopewalkError:
            raise
        except Exception as error:  # each store has its own exceptions for transient errors
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            if time.monotonic() + delay_seconds > deadline:
                raise StorageError(f"{file.name}: {_describe(error)}; the next fetch goes on where this one stopped") from None
            if delay_seconds > 1.0:
                progress.notify(f"{file.name}: {_describe(error)}; retrying")
            time.sleep(delay_seconds)
            delay_seconds = min(2 * delay_seconds, 8.0)
    prefix = "git" if file.digest.startswith("git-") else "sha256"
    return f"{prefix}-{content.hexdigest()}"
