"""Small files of a run directory: atomic writes, JSON lines that survive crashes, locks, folders with unique names."""

import fcntl
import json
import logging
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import parse_json

log = logging.getLogger(__name__)

SYNC_THREADS = 8
TAIL_BYTES = 1 << 16  # some hundred lines
SAMPLES_TAIL_BYTES = 1 << 13  # some samples of one of thousands of nodes
CACHE_VARIABLE = "ROPEWALK_CACHE"
MODE_VARIABLE = "ROPEWALK_RUN_MODE"  # octal mode of run directories, such as 2770 to share them with a group
PRIVATE_MODE = 0o700  # runs contain uncommitted code, logs and keys


def write_atomically(path: Path, data: str | bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file so that readers, also after a crash or a power cut, see either the old or the new content.

    After the return a power cut leaves the new one. With `durable=False` nothing is synced to disk: a power cut may leave the old
    file or an empty one. `mode`: permissions, less the umask.
    """
    raw = data.encode() if isinstance(data, str) else data
    # rename is atomic only within one filesystem, so the temporary file sits beside its target
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb", opener=partial(os.open, mode=mode)) as stream:
            stream.write(raw)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk, as far as the file system can."""
    with suppress(OSError):  # some network file systems refuse it
        _sync(folder)


def write_all(files: Mapping[Path, str | bytes], *, durable: bool = True) -> None:
    """Write many files atomically, in order, and sync them to disk together.

    With `durable=False` the caller must call `sync_all`; a power cut before that leaves no file, or an empty one.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in files}
    try:
        for path, data in files.items():
            temporaries[path].write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            sync_all(list(temporaries.values()))
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise


def sync_all(paths: Sequence[Path]) -> None:
    """Sync files to disk."""
    if len(paths) == 1:
        return _sync(paths[0])
    # in parallel, since file systems combine concurrent syncs; sequential syncs take four times as long
    with ThreadPoolExecutor(min(SYNC_THREADS, max(1, len(paths)))) as pool:
        list(pool.map(_sync, paths))


@contextmanager
def syncing(paths: Sequence[Path]) -> Iterator[None]:
    """Call `sync_all` in a thread while the block runs, and wait for it at the end of the block. Raises OSError there."""
    errors: list[OSError] = []

    def sync() -> None:
        try:
            sync_all(paths)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json_text(value), durable=durable)


def json_text(value: Any) -> str:
    """Format `value` as indented JSON, the format of all JSON files of a run."""
    return json.dumps(value, indent=1, default=str) + "\n"


def read_json(path: Path) -> Any | None:
    """Read a JSON file; return None if it is missing, or empty after a power cut. Raises DamagedFileError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse_json(raw, path)


@cache
def machine() -> str:
    """Return a unique name of this machine and its last boot, valid as a file name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]  # pods on two machines may have the same host name
    except OSError:  # not Linux
        boot = "0"
    return f"{socket.gethostname()}-{boot}"


def cache_dir() -> Path:
    """Return this user's cache directory: $ROPEWALK_CACHE, else $XDG_CACHE_HOME/ropewalk, else ~/.cache/ropewalk."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ropewalk"


def require_empty(directory: Path) -> None:
    """Raise ConfigError if a directory to write exists and is not empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"the directory {directory} is not empty; name a new one")


def make_private(folder: Path) -> None:
    """Make a folder with the mode $ROPEWALK_RUN_MODE, by default accessible only to this user. Raises FileExistsError."""
    folder.mkdir(mode=PRIVATE_MODE)
    if MODE_VARIABLE in os.environ:
        folder.chmod(_run_mode())


def ensure_private(folder: Path) -> None:
    """Make a folder with the mode of run directories, or close an existing one of this user to all whom that mode excludes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        make_private(folder)
    except FileExistsError:
        status = folder.stat()
        if status.st_uid == os.getuid() and status.st_mode & 0o077 & ~_run_mode():
            folder.chmod(stat.S_IMODE(status.st_mode) & (0o7700 | _run_mode()))
            log.warning("%s was open to other users and is private now; $%s opens it to a group", folder, MODE_VARIABLE)


def _run_mode() -> int:
    mode = os.environ.get(MODE_VARIABLE, "")
    if mode and not re.fullmatch(r"[0-7]?7[0-7]{2}", mode):
        raise ConfigError(
            f"${MODE_VARIABLE} is {mode!r}: must be an octal mode as for chmod, with full access for the owner, such as 2770"
        )
    return int(mode, 8) if mode else PRIVATE_MODE


def dated_label(name: str) -> str:
    """Return the prefix of the folder names that `dated_folder` makes; a dash, the time and a random suffix follow it."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40] or "run"


def dated_folder(root: Path, name: str, inside: Sequence[str], make: Callable[[Path], None] = Path.mkdir) -> Path:
    """Make a folder with a unique name below `root`, and subfolders `inside` it. `make`: creates the folder."""
    while True:
        folder = root / f"{dated_label(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            make(folder)
        except FileExistsError:
            continue
        for inner in inside:
            (folder / inner).mkdir()
        return folder


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file while the block runs; yields its descriptor.

    The kernel releases the lock when all processes that hold the descriptor have died.
    """
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def read_tail(path: Path, size: int = TAIL_BYTES) -> bytes:
    """Return the whole lines among about the last `size` bytes of a file; no bytes if there is no such file."""
    try:
        with path.open("rb") as stream:
            begin = max(0, stream.seek(0, os.SEEK_END) - size)
            stream.seek(begin)
            raw = stream.read()
    except FileNotFoundError:
        return b""
    return raw[raw.find(b"\n") + 1 :] if begin else raw


def append_line(path: Path, value: Any) -> None:
    """Append a JSON object as a line; see `append_lines`."""
    append_lines(path, [value])


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append JSON objects, one per line, in a single write, so that lines of different processes never mix.

    This holds for processes of one machine only: on NFS two machines may overwrite each other's lines.
    """
    lines = "".join(json.dumps(value, default=str) + "\n" for value in values).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        while lines:  # a nearly full disk accepts only a part; the next write then raises an error
            lines = lines[os.write(descriptor, lines) :]
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file, without damaged lines and an incomplete last line."""
    return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what `read_lines` returns: of a long file all objects together take more time and memory."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return
    for line in raw.split(b"\n")[:-1]:
        if isinstance(value := _parse_line(line), dict):
            yield value


def parse_lines(raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """Parse a JSON-lines file's complete lines into objects; count damaged ones (power cuts, two writers of one file)."""
    lines = [line for line in raw.split(b"\n")[:-1] if line.strip()]
    objects = [value for line in lines if isinstance(value := _parse_line(line), dict)]
    return objects, len(lines) - len(objects)


def _parse_line(line: bytes) -> Any:
    """Return the value of a line, or None if it is damaged. orjson is fast, but reads no NaN and no large integers."""
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        return json.loads(line)
    except ValueError:
        return None
