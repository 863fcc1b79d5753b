"""A history in numbered files: each number is written by one process of one machine, whole, and never changed."""

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
    """Every entry by its number, ascending, also those that another machine has written a moment ago."""
    found: dict[int, dict[str, Any]] = {}
    for name in sorted(list_afresh(folder)):
        number, _, suffix = name.partition(".")
        if suffix == "json" and number.isdigit():
            with suppress(FileNotFoundError, ValueError):  # where files cannot be linked, a crash leaves an empty one
                found[int(number)] = json.loads((folder / name).read_bytes())
    return found


def append_numbered(folder: Path, decide: Callable[[Entries], Mapping[str, Any] | None]) -> int | None:
    """Add what `decide` makes of the entries that there are, as the next one; returns its number, or None where it made none.

    Where another process is faster, `decide` is asked again, with that one's entry too: what it has seen is all that there was
    when its own was added. Nothing is locked, and a kill leaves the entry whole or not there. The folder must exist.
    """
    while True:
        entries = read_numbered(folder)
        value = decide(entries)
        if value is None:
            return None
        number = max(entries, default=0) + 1
        while not create_whole(folder / f"{number:06d}.json", json_text(value)):
            if number in read_numbered(folder):
                break  # somebody else was faster, and said something
            number += 1  # an empty file, which a crash has left
        else:
            return number
