"""The small files of a run directory: written whole or not at all, and read whatever a crash left of them."""

import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import parse_json

SYNC_THREADS = 8
MODE_VARIABLE = "ROPEWALK_RUN_MODE"  # who may enter a run's directory, as chmod takes it: 2770 where a group shares its runs
PRIVATE_MODE = 0o700  # runs hold uncommitted work, logs and keys


def write_atomically(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Write `path` so that a reader sees the old content or the new, and a crash leaves no half of it.

    Not `durable`: a power cut may leave the old file, or an empty one, and nobody waits for the disk.
    """
    raw = data.encode() if isinstance(data, str) else data
    # rename is atomic only within one filesystem, so the temporary file sits beside its target
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(raw)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(files: Mapping[Path, str | bytes], *, durable: bool = True) -> None:
    """Write many files, each as `write_atomically` does, in order, and wait for the disk once for all of them.

    Not `durable`: the caller calls `sync_all`; a power cut before that leaves no file, or an empty one.
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
    """Wait until what was written to these files is on the disk."""
    if len(paths) == 1:
        return _sync(paths[0])
    # a file system joins what is asked of it at the same time; one by one they take four times as long
    with ThreadPoolExecutor(min(SYNC_THREADS, max(1, len(paths)))) as pool:
        list(pool.map(_sync, paths))


@contextmanager
def syncing(paths: Sequence[Path]) -> Iterator[None]:
    """Call `sync_all` in a thread while the block runs, and wait for it at the block's end. Raises OSError then."""
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
    """Write `value` as readable JSON, atomically."""
    write_atomically(path, json_text(value), durable=durable)


def json_text(value: Any) -> str:
    """Write `value` as JSON that a person can read, the form of all JSON files of a run."""
    return json.dumps(value, indent=1, default=str) + "\n"


def read_json(path: Path) -> Any | None:
    """Read a JSON file; None where there is no such file, or an empty one that a power cut left. Raises DamagedFileError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return parse_json(raw, path)


@cache
def machine() -> str:
    """Name this machine since its last boot, as no other machine is named, in characters fit for a file's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]  # pods of two machines may have one name
    except OSError:  # not Linux
        boot = "0"
    return f"{socket.gethostname()}-{boot}"


def make_private(folder: Path) -> None:
    """Make a folder that only this user can enter, or those whom $ROPEWALK_RUN_MODE lets in. Raises FileExistsError."""
    mode = os.environ.get(MODE_VARIABLE, "")
    if mode and not re.fullmatch(r"[0-7]?7[0-7]{2}", mode):
        raise ConfigError(
            f"${MODE_VARIABLE} is {mode!r}: it must be an octal mode, as chmod takes it, that lets the owner in, such as 2770"
        )
    folder.mkdir(mode=PRIVATE_MODE)
    if mode:
        folder.chmod(int(mode, 8))


def dated_label(name: str) -> str:
    """What the names of a `dated_folder` begin with; behind it stand a dash, the time and some letters."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40] or "run"


def dated_folder(root: Path, name: str, inside: Sequence[str], make: Callable[[Path], None] = Path.mkdir) -> Path:
    """Make a folder below `root` with a name of its own, by `make`, and the folders `inside` it."""
    while True:
        folder = root / f"{dated_label(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        try:
            make(folder)
        except FileExistsError:
            continue
        for inner in inside:
            (folder / inner).mkdir()
        return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs. The lock of a process that dies is free."""
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def append_line(path: Path, value: Any) -> None:
    """Append one JSON object as one line, as `append_lines` does."""
    append_lines(path, [value])


def append_lines(path: Path, values: Sequence[Any]) -> None:
    """Append JSON objects, a line each, in a single write, so that the lines of several processes of one machine never mix.

    The lines of two machines do mix on NFS, where each appends at what it believes to be the end: let one machine write a file.
    """
    lines = "".join(json.dumps(value, default=str) + "\n" for value in values).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        while lines:  # a disk that is nearly full takes a part, and says at the next one that it is full
            lines = lines[os.write(descriptor, lines) :]
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file, without broken lines and a last line that a crash cut short."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_lines(raw)[0]


def parse_lines(raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """Parse the complete lines of a JSON-lines file into objects, and count the broken lines.

    Machines that lost their power leave such lines, and file systems that let two writers overwrite each other.
    """
    found, broken = [], 0
    for line in raw.split(b"\n")[:-1]:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken += 1
    return found, broken
