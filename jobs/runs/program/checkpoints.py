"""Checkpoints of a user's program: directories or files that it writes, complete only with a manifest of checksums."""

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
LATEST = "latest.json"  # names of the committed checkpoints, oldest first; a file, since listings may be outdated on NFS
CHUNK_BYTES = 1 << 22
AT_ONCE = 8  # files read in parallel


def step_in(name: str) -> int | None:
    """Return the step in a checkpoint's name, its last number (`step-300`, `epoch=1-step=300.ckpt`), or None."""
    numbers = re.findall(r"\d+", Path(name).stem if "." in name else name)
    return int(numbers[-1]) if numbers else None


def commit(folder: Path, path: Path, step: int | None, check: Callable[[], None]) -> dict[str, Any]:
    """Write and return the manifest of the checkpoint at `path`, directly below `folder`; this makes it complete.

    `check` raises if this process may no longer write. Raises CheckpointError if there is nothing to commit.
    """
    path = path.absolute()
    if not path.is_relative_to(folder.absolute()) or path == folder.absolute():
        raise CheckpointError(f"{path}: is outside of {folder}; write checkpoints below ropewalk.checkpoint_dir()")
    if path.parent != folder.absolute():
        raise CheckpointError(f"{path}: must be directly below {folder}, one directory or file per checkpoint")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory; write the checkpoint on all ranks before committing it")
    step = step if step is not None else step_in(path.name)
    if step is None:
        raise CheckpointError(f"{path.name}: the name contains no step; use a name like step-300, or pass step=")
    manifest = {"step": step, "files": _fingerprints(dict(_files(path)))}
    check()
    write_json(_manifest_of(path), manifest)
    names = [name for name in committed(folder) if name != path.name]
    write_json(folder / LATEST, {"committed": sorted([*names, path.name], key=lambda name: (_step(folder, name), name))})
    return manifest


def committed(folder: Path) -> list[str]:
    """Return the names of the committed checkpoints, oldest first, without verifying their files."""
    content = read_json_afresh(folder / LATEST)
    names = content.get("committed", []) if isinstance(content, dict) else []
    return [str(name) for name in names]


def latest(folder: Path, complain: Callable[[str, str], object]) -> Path | None:
    """Return the newest committed checkpoint that matches its manifest, or None.

    `complain` is called with the name and the problem of each newer one that is damaged.
    """
    for name in reversed(committed(folder)):
        path = folder / name
        problem = damage(path)
        if problem is None:
            return path
        complain(name, problem)
    return None


def damage(path: Path) -> str | None:
    """Return the problem of a committed checkpoint, or None if it is intact."""
    try:
        manifest = json.loads(_manifest_of(path).read_bytes())
        expected = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no readable manifest"
    files = dict(_files(path))
    missing = next((name for name in expected if name not in files), None)
    if missing is not None:
        return f"{missing or path.name} is missing"
    actual = _fingerprints({name: files[name] for name in expected})
    changed = next((name for name, fingerprint in expected.items() if actual[name] != fingerprint), None)
    return f"{changed or path.name} does not match its checksum" if changed is not None else None


def _manifest_of(path: Path) -> Path:
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def _step(folder: Path, name: str) -> int:
    try:
        return int(json.loads(_manifest_of(folder / name).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the checkpoint, path) of a checkpoint's files; the name is empty if the checkpoint is a single file."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / MANIFEST:
            yield file.relative_to(path).as_posix(), file


def _fingerprints(files: Mapping[str, Path]) -> dict[str, list[Any]]:
    """Return [size, checksum] of each file. Files are read in parallel, since the other ranks wait in a collective."""
    fingerprints: Iterable[list[Any]]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fingerprints = pool.map(_fingerprint, files.values())
    except RuntimeError:  # no new threads while the interpreter shuts down, when a program may still save
        fingerprints = map(_fingerprint, files.values())
    return dict(zip(files, fingerprints, strict=True))


def _fingerprint(file: Path) -> list[Any]:
    digest, size = xxhash.xxh3_128(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return [size, digest.hexdigest()]


def prune(folder: Path, keep: int) -> None:
    """Remove all committed checkpoints except the newest `keep`, first from the list and then from disk."""
    names = committed(folder)
    obsolete = names[: max(0, len(names) - max(1, keep))]
    if not obsolete:
        return
    write_json(folder / LATEST, {"committed": [name for name in names if name not in obsolete]})
    for name in obsolete:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
            _manifest_of(path).unlink(missing_ok=True)
