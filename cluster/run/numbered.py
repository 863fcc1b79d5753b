"""Append-only histories in numbered files, with exactly one writer per number, also between machines."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import json_text

Entries = Mapping[int, Mapping[str, Any]]
E = TypeVar("E", bound=BaseModel)


def numbers_in(folder: Path) -> list[int]:
    """Return the numbers of all files, ascending, including those that another machine has just written."""
    names = (name.partition(".") for name in list_afresh(folder))
    return sorted(int(number) for number, _, suffix in names if suffix == "json" and number.isdigit())


def read_numbered(folder: Path) -> dict[int, dict[str, Any]]:
    """Return all entries by number, ascending. Raises DamagedFileError if one cannot be read."""
    return {number: entry for number in numbers_in(folder) if (entry := read_entry(folder, number)) is not None}


def read_entry(folder: Path, number: int) -> dict[str, Any] | None:
    """Return an entry; None if its file is missing, or empty: on file systems without links a crash may leave it so.

    Raises DamagedFileError.
    """
    path = _path(folder, number)
    try:
        entry = json.loads(raw) if (raw := path.read_bytes()) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(path, f"not JSON ({error})") from None
    if entry is not None and not isinstance(entry, dict):
        raise _damaged(path, "not a JSON object")
    return entry


def parse_entry(kind: type[E], folder: Path, number: int, entry: Mapping[str, Any]) -> E:
    """Parse an entry into a model, which decides about unknown keys. Raises DamagedFileError that names the file."""
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _damaged(_path(folder, number), f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def append_numbered(folder: Path, decide: Callable[[Entries], Mapping[str, Any] | None]) -> int | None:
    """Append the entry that `decide` returns for the existing entries, and return its number; None if it returns None.

    If another process appends first, `decide` is called again with that entry included, so it has always seen all earlier
    entries. Uses no locks. After a crash the entry is either complete or missing. The folder must exist. Raises
    DamagedFileError if an existing entry cannot be read.
    """
    while True:
        entries = read_numbered(folder)
        value = decide(entries)
        if value is None:
            return None
        number = max(entries, default=0) + 1
        while not create_whole(_path(folder, number), json_text(value)):
            if number in read_numbered(folder):
                break  # another process has appended an entry
            number += 1  # the file is empty, left by a crash
        else:
            return number


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _damaged(path: Path, problem: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: damaged: {problem}; restore the file, or remove it to undo what it records")
