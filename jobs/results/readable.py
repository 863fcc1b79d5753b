"""Tables and plots in a run's directory, which trackers show."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.run.files import read_json, write_atomically, write_json
from ropewalk.cluster.run.names import PICTURES, TABLES

MOST_ROWS = 1000
_LONGEST = 10_000  # characters per cell
_LONGEST_NAME = 80


class ReadableTable(NamedTuple):
    """A named table; `figures` if its texts are only names, never data."""

    name: str
    columns: list[str]
    rows: list[list[Any]]
    figures: bool


def write_table(run: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, figures: bool = False) -> None:
    """Write a table of a run, replacing its previous version; at most the last thousand rows, of texts and numbers.

    Only tables of `figures` are sent to W&B where texts may not be.
    """
    cells = [[_cell(value) for value in row] for row in rows[-MOST_ROWS:]]
    assert all(len(row) == len(columns) for row in cells)
    (run / TABLES).mkdir(exist_ok=True)
    write_json(run / TABLES / f"{name}.json", {"columns": list(columns), "rows": cells, "figures": figures})


def add_rows(run: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, key: str) -> None:
    """Add rows to a table, replacing rows with the same value in the column `key`."""
    previous = read_table(run / TABLES / f"{name}.json")
    key_index = list(columns).index(key)
    new_keys = {row[key_index] for row in rows}
    remaining = []
    if previous is not None and previous.columns == list(columns):
        remaining = [row for row in previous.rows if row[key_index] not in new_keys]
    write_table(run, name, columns, [*remaining, *rows])


def write_picture(run: Path, name: str, png: bytes) -> None:
    """Write a plot of a run, replacing its previous version."""
    (run / PICTURES).mkdir(exist_ok=True)
    write_atomically(run / PICTURES / f"{name}.png", png)


def file_word(title: str) -> str:
    """Convert a title into the file name of a table or plot."""
    return re.sub(r"[^\w]+", "-", title.lower(), flags=re.ASCII).strip("-")[:_LONGEST_NAME] or "untitled"


def read_table(path: Path) -> ReadableTable | None:
    """Read a table, or return None if the file does not exist or holds no table."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"columns", "rows"} <= content.keys():
        return None
    rows = [list(row) for row in content["rows"]]
    return ReadableTable(path.stem, list(content["columns"]), rows, bool(content.get("figures")))


def tables(run: Path) -> Iterator[Path]:
    """Yield the files of a run's tables."""
    yield from sorted((run / TABLES).glob("*.json"))


def pictures(run: Path) -> Iterator[Path]:
    """Yield the files of a run's plots."""
    yield from sorted((run / PICTURES).glob("*.png"))


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()[:_LONGEST]
