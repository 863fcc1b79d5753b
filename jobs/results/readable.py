"""What of a run is there to be read, beside its curves: tables and pictures in the run's directory, which trackers show."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.run.files import read_json, write_atomically, write_json
from ropewalk.cluster.run.names import PICTURES, TABLES

MOST_ROWS = 1000
_LONGEST = 10_000  # characters of a cell
_LONGEST_NAME = 80


class ReadableTable(NamedTuple):
    """A table by its name."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


def write_table(run: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table of a run anew: at most its last thousand rows, of texts and numbers."""
    cells = [[_cell(value) for value in row] for row in rows[-MOST_ROWS:]]
    assert all(len(row) == len(columns) for row in cells)
    (run / TABLES).mkdir(exist_ok=True)
    write_json(run / TABLES / f"{name}.json", {"columns": list(columns), "rows": cells})


def add_rows(run: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, key: str) -> None:
    """Add rows to a table, in the place of those that have the same value of the column `key`."""
    known = read_table(run / TABLES / f"{name}.json")
    place = list(columns).index(key)
    new = {row[place] for row in rows}
    kept = [row for row in known.rows if row[place] not in new] if known and known.columns == list(columns) else []
    write_table(run, name, columns, [*kept, *rows])


def write_picture(run: Path, name: str, png: bytes) -> None:
    """Write a picture of a run anew."""
    (run / PICTURES).mkdir(exist_ok=True)
    write_atomically(run / PICTURES / f"{name}.png", png)


def file_word(title: str) -> str:
    """A title as the name of a table or a picture."""
    return re.sub(r"[^\w]+", "-", title.lower(), flags=re.ASCII).strip("-")[:_LONGEST_NAME] or "untitled"


def read_table(path: Path) -> ReadableTable | None:
    """The table of a file; None for one that is not there, or holds none."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"columns", "rows"} <= found.keys():
        return None
    return ReadableTable(path.stem, list(found["columns"]), [list(row) for row in found["rows"]])


def tables(run: Path) -> Iterator[Path]:
    """The files of the tables of a run."""
    yield from sorted((run / TABLES).glob("*.json"))


def pictures(run: Path) -> Iterator[Path]:
    """The files of the pictures of a run."""
    yield from sorted((run / PICTURES).glob("*.png"))


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()[:_LONGEST]
