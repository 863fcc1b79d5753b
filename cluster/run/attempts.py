"""Folders and numbers of a run's attempts, and their creation."""

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.files import append_lines, json_text, machine, write_all
from ropewalk.cluster.run.names import ATTEMPT, ATTEMPTS, LATER_FOLDER, SUCCESSOR
from ropewalk.cluster.run.succession import create_marked_folder, mark_succeeded, read_mark
from ropewalk.cluster.spec import Outcome, RunState

log = logging.getLogger(__name__)


def attempt_folder(run: Path, number: int) -> Path:
    """Return the folder of an attempt, such as attempts/0001."""
    return run / ATTEMPTS / f"{number:04d}"


def attempt_numbers(run: Path) -> list[int]:
    """Return the numbers of a run's attempts, ascending. Attempts missing in a cached listing are found by successor marks."""
    try:
        numbers = sorted(int(name) for name in os.listdir(run / ATTEMPTS) if name.isdigit())
    except FileNotFoundError:
        return []
    while numbers and (newer := read_mark(attempt_folder(run, numbers[-1]) / SUCCESSOR)) > numbers[-1]:
        numbers += range(numbers[-1] + 1, newer + 1)
    return numbers


def begin_attempts(
    runs: Sequence[Path], details: Sequence[Mapping[str, Any]], *, number: int | None = None, durable: bool = True
) -> list[int]:
    """Open the next attempt of each run with its details in `attempt.json`, and return the attempts' numbers.

    `number`: the required number of all attempts; raises FileExistsError, and leaves nothing behind, if another process has
    taken it. With `durable=False` the caller must call `sync_all` or `syncing` on each `attempt.json` before it uses the
    attempts. Before an attempt starts, `RunDir.make_folders` must be called.
    """
    numbers: list[int] = []
    files: dict[Path, str] = {}
    try:
        for run, run_details in zip(runs, details, strict=True):
            numbers.append(_open(run, number))
            content = {"attempt": numbers[-1], "created": time.time(), **run_details}
            files[attempt_folder(run, numbers[-1]) / ATTEMPT] = json_text(content)
    except FileExistsError:
        for path in files:
            shutil.rmtree(path.parent)
        raise
    write_all(files, durable=durable)
    _list_later({run: number for run, number in zip(runs, numbers, strict=True) if number > 1})
    return numbers


def _list_later(attempts: Mapping[Path, int]) -> None:
    """Add attempts after the first to the lists beside the runs, so that a listing of runs finds those that go on."""
    for root in {run.parent for run in attempts}:
        path = root / LATER_FOLDER / f"{machine()}-{os.getuid()}.jsonl"
        lines = [{"run": run.name, "attempt": number} for run, number in attempts.items() if run.parent == root]
        try:
            if not path.parent.exists():
                path.parent.mkdir(exist_ok=True)
                path.parent.chmod(0o1777)  # users may share the root
            append_lines(path, lines)
        except OSError as error:
            log.warning("%s: `ropewalk ps` may list a resumed run late: %s", path, error)


def _open(run: Path, wanted: int | None) -> int:
    first = wanted or (attempt_numbers(run) or [0])[-1] + 1
    number = create_marked_folder(run / ATTEMPTS, lambda n: attempt_folder(run, n), first, exactly=wanted is not None)
    mark_succeeded(lambda older: attempt_folder(run, older) / SUCCESSOR, number, first=1)
    return number


def parse_outcome(raw: Any, path: Path) -> Outcome:
    """Parse the content of an outcome file at `path`. Raises DamagedFileError."""
    try:
        return Outcome(**{**raw, "state": RunState(raw["state"])})
    except (TypeError, KeyError, ValueError):
        raise DamagedFileError(f"{path}: damaged: not an outcome; restore the file, or remove it") from None
