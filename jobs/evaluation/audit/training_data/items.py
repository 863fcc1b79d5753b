"""Items of evaluation files under any keys: all words that a person would read as the item."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.suites.read import json_rows, read_text


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item that may be in the training data, as one text or several."""

    measure: str  # its origin
    key: str
    texts: tuple[str, ...]


def read_items(url: str) -> list[Item]:
    """Return the items of a jsonl file: every text in a line is part of its item. Raises DataError for lines without text."""
    name = url.rpartition("/")[2].split(".")[0] or "items"
    items = []
    for number, where, row in json_rows(read_text(url), url):
        texts = tuple(dict.fromkeys(texts_in(row)))
        if not texts:
            raise DataError(f"{where}: the line has no text; correct or remove it")
        items.append(Item(measure=name, key=f"{name}:{number}", texts=texts))
    if not items:
        raise DataError(f"contamination.against: {url}: the file has no item")
    return items


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text of more than one word in nested plain values."""
    if isinstance(value, str):
        if len(value.split()) > 1:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
