"""Items of evaluation files, in whatever keys these have: all the words that a person would read as the item."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.suites.read import json_rows, read_text


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item that may be in the training data, as one text or several."""

    measure: str  # where it comes from
    key: str
    texts: tuple[str, ...]


def read_items(url: str) -> list[Item]:
    """The items of a jsonl file: every text in a line is a part of its item. Raises DataError: a line without any, or no line."""
    name = url.rpartition("/")[2].split(".")[0] or "items"
    found = []
    for number, where, row in json_rows(read_text(url), url):
        texts = tuple(dict.fromkeys(texts_in(row)))
        if not texts:
            raise DataError(f"{where}: has no text in it; correct or remove the line")
        found.append(Item(measure=name, key=f"{name}:{number}", texts=texts))
    if not found:
        raise DataError(f"contamination.against: {url}: there is no item in it")
    return found


def texts_in(value: Any) -> Iterator[str]:
    """Every text in nested plain values that is longer than a word."""
    if isinstance(value, str):
        if len(value.split()) > 1:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
