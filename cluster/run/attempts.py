"""The attempts of a run on disk: their folders, their numbers, and how many are opened at once."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.files import json_text, write_all
from ropewalk.cluster.run.names import ATTEMPT, ATTEMPTS
from ropewalk.cluster.run.succession import SUCCESSOR, open_folder, read_mark, succeed
from ropewalk.cluster.spec import Outcome, RunState


def attempt_folder(run: Path, number: int) -> Path:
    """The folder of one attempt: attempts/0001."""
    return run / ATTEMPTS / f"{number:04d}"


def attempt_numbers(run: Path) -> list[int]:
    """The numbers of a run's attempts, ascending; the newest also where this machine's listing of the folder is old."""
    try:
        found = sorted(int(name) for name in os.listdir(run / ATTEMPTS) if name.isdigit())
    except FileNotFoundError:
        return []
    while found and (newer := read_mark(attempt_folder(run, found[-1]) / SUCCESSOR)) > found[-1]:
        found += range(found[-1] + 1, newer + 1)
    return found


def begin_attempts(
    runs: Sequence[Path], details: Sequence[Mapping[str, Any]], *, number: int | None = None, durable: bool = True
) -> list[int]:
    """Open the next attempt of each run, with its own details in `attempt.json`; returns the attempts' numbers.

    With `number` no other number will do: raises FileExistsError if another process was faster, and leaves no trace then.
    Not `durable`: the caller calls `sync_all` or `syncing` on each `attempt.json` before it tells anybody of the attempts.
    Whoever starts an attempt calls `RunDir.make_folders` for it first.
    """
    numbers: list[int] = []
    files: dict[Path, str] = {}
    try:
        for run, own in zip(runs, details, strict=True):
            numbers.append(_open(run, number))
            opened = {"attempt": numbers[-1], "created": time.time(), **own}
            files[attempt_folder(run, numbers[-1]) / ATTEMPT] = json_text(opened)
    except FileExistsError:
        for path in files:
            shutil.rmtree(path.parent)
        raise
    write_all(files, durable=durable)
    return numbers


def _open(run: Path, wanted: int | None) -> int:
    first = wanted or (attempt_numbers(run) or [0])[-1] + 1
    number = open_folder(run / ATTEMPTS, lambda n: attempt_folder(run, n), first, exactly=wanted is not None)
    succeed(lambda older: attempt_folder(run, older) / SUCCESSOR, number, first=1)
    return number


def outcome_of(raw: Any, path: Path) -> Outcome:
    """How an attempt ended, of what its file at `path` holds. Raises DamagedFileError."""
    try:
        return Outcome(**{**raw, "state": RunState(raw["state"])})
    except (TypeError, KeyError, ValueError):
        raise DamagedFileError(f"{path}: damaged: it holds no outcome; restore it, or remove it") from None
