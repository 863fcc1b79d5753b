"""Checkpoints of a user's program: a directory or a file of its own making, complete only with a manifest of checksums."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.run.files import write_json

MANIFEST = "manifest.json"
LATEST = "latest.json"  # the names of the committed checkpoints, oldest first; opened by name, so as new as the moment
CHUNK_BYTES = 1 << 22
AT_ONCE = 8  # files that are read at a time


def step_in(name: str) -> int | None:
    """The last number in a checkpoint's name, which is taken for its step: `step-300`, `epoch=1-step=300.ckpt`."""
    numbers = re.findall(r"\d+", Path(name).stem if "." in name else name)
    return int(numbers[-1]) if numbers else None


def commit(folder: Path, path: Path, step: int | None, check: Callable[[], None]) -> dict[str, Any]:
    """Write the manifest of what lies at `path`, below `folder`; from then on it may be the latest. Returns the manifest.

    `check` raises if this process may not write (any more). Raises CheckpointError if there is nothing to commit.
    """
    path = path.absolute()
    if not path.is_relative_to(folder.absolute()) or path == folder.absolute():
        raise CheckpointError(f"{path}: lies outside {folder}; write checkpoints below ropewalk.checkpoint_dir()")
    if path.parent != folder.absolute():
        raise CheckpointError(f"{path}: must be directly below {folder}, one directory or one file a checkpoint")
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or directory to commit; write it first, on all ranks")
    step = step if step is not None else step_in(path.name)
    if step is None:
        raise CheckpointError(f"{path.name}: has no number for its step; name it like step-300, or give step=")
    manifest = {"step": step, "files": _fingerprints(dict(_files(path)))}
    check()
    write_json(_manifest_of(path), manifest)
    names = [name for name in committed(folder) if name != path.name]
    write_json(folder / LATEST, {"committed": sorted([*names, path.name], key=lambda name: (_step(folder, name), name))})
    return manifest


def committed(folder: Path) -> list[str]:
    """The names of the checkpoints that were committed, oldest first; whether their bytes are intact is another question."""
    told = read_json_afresh(folder / LATEST)
    names = told.get("committed", []) if isinstance(told, dict) else []
    return [str(name) for name in names]


def latest(folder: Path, complain: Callable[[str, str], object]) -> Path | None:
    """The newest committed checkpoint whose bytes are what its manifest says; None: there is none.

    `complain` is told of each newer one that is damaged, and why.
    """
    for name in reversed(committed(folder)):
        path = folder / name
        problem = damage(path)
        if problem is None:
            return path
        complain(name, problem)
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a committed checkpoint; None if nothing is."""
    try:
        manifest = json.loads(_manifest_of(path).read_bytes())
        expected = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no readable manifest"
    found = dict(_files(path))
    missing = next((name for name in expected if name not in found), None)
    if missing is not None:
        return f"{missing or path.name} is missing"
    now = _fingerprints({name: found[name] for name in expected})
    other = next((name for name, fingerprint in expected.items() if now[name] != fingerprint), None)
    return f"{other or path.name} is not what was written" if other is not None else None


def _manifest_of(path: Path) -> Path:
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def _step(folder: Path, name: str) -> int:
    try:
        return int(json.loads(_manifest_of(folder / name).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a checkpoint by their names inside it; a checkpoint of one file has it under the empty name."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / MANIFEST:
            yield file.relative_to(path).as_posix(), file


def _fingerprints(files: Mapping[str, Path]) -> dict[str, list[Any]]:
    """The fingerprint of each file. Many are read at a time: the other ranks wait, and a collective has a limit."""
    found: Iterable[list[Any]]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(_fingerprint, files.values())
    except RuntimeError:  # the interpreter is ending, in which a thread of the program, or one of its last acts, may save
        found = map(_fingerprint, files.values())
    return dict(zip(files, found, strict=True))


def _fingerprint(file: Path) -> list[Any]:
    digest, size = xxhash.xxh3_128(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return [size, digest.hexdigest()]


def prune(folder: Path, keep: int) -> None:
    """Remove all committed checkpoints but the newest `keep`; the list first, so that none is looked for that is half gone."""
    names = committed(folder)
    doomed = names[: max(0, len(names) - max(1, keep))]
    if not doomed:
        return
    write_json(folder / LATEST, {"committed": [name for name in names if name not in doomed]})
    for name in doomed:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
            _manifest_of(path).unlink(missing_ok=True)
