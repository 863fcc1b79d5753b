"""Append-only histories in numbered files, with exactly one writer per number, also between machines."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import json_text

Entries = Mapping[int, Mapping[str, Any]]


def read_numbered(folder: Path) -> dict[int, dict[str, Any]]:
    """Return all entries by number, ascending, including those that another machine has just written."""
    entries: dict[int, dict[str, Any]] = {}
    for name in sorted(list_afresh(folder)):
        number, _, suffix = name.partition(".")
        if suffix == "json" and number.isdigit():
            with suppress(FileNotFoundError, ValueError):  # on file systems without links a crash may leave an empty file
                entries[int(number)] = json.loads((folder / name).read_bytes())
    return entries


def append_numbered(folder: Path, decide: Callable[[Entries], Mapping[str, Any] | None]) -> int | None:
    """Append the entry that `decide` returns for the existing entries, and return its number; None if it returns None.

    If another process appends first, `decide` is called again with that entry included, so it has always seen all earlier
    entries. Uses no locks. After a crash the entry is either complete or missing. The folder must exist.
    """
    while True:
        entries = read_numbered(folder)
        value = decide(entries)
        if value is None:
            return None
        number = max(entries, default=0) + 1
        while not create_whole(folder / f"{number:06d}.json", json_text(value)):
            if number in read_numbered(folder):
                break  # another process has appended an entry
            number += 1  # the file is empty, left by a crash
        else:
            return number
