"""Erasure of exchanges from all stores of a serving run, and the data and models that learnt from them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.collect.files import CONVERSATIONS, PAIRS
from ropewalk.jobs.serving.feedback.read import find_answer
from ropewalk.jobs.serving.feedback.records import (
    FOLDER,
    ROLL,
    answers_store,
    exchanges_store,
    judgements_store,
    ratings_store,
    samples_store,
)
from ropewalk.jobs.serving.feedback.store import Store
from ropewalk.jobs.serving.trace import id_of, trace_documents

WRITER_SECONDS, LOOK_SECONDS = 70.0, 0.2  # a file system may hide the request from the writer for a minute


class Erasable(NamedTuple):
    """A store with its columns that hold ids of exchanges, and those that hold content."""

    store: Callable[[Path], Store]
    ids: tuple[str, ...]
    content: tuple[str, ...]


# in this order: the ledger is last, to find exchanges again after a crash
STORES = {
    "judgement": Erasable(judgements_store, ("item", "first", "second", "corrected"), ("correction",)),
    "second answer": Erasable(samples_store, ("exchange",), ("answer",)),
    "rating": Erasable(ratings_store, ("exchange",), ("correction", "comment")),
    "exchange": Erasable(exchanges_store, ("id",), ("messages", "choices", "tools", "sampling", "prompt", "answer")),
    "ledger row": Erasable(answers_store, ("id",), ()),
}
RECORD_KEYS = ("messages", "prompt", "chosen", "rejected", "tools")  # content of collected records


def forget_exchanges(
    run: RunDir, *, exchange: str | None = None, client: str | None = None, containing: str | None = None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Erase an exchange, those of a client with its ratings, or those with a text in them or in feedback on them.

    Return the number of erased records by kind, and what `trace_documents` finds of the exchanges. Raises ConfigError if a writer
    does not give up its records; then nothing was erased.
    """
    folder = run.path / FOLDER
    _roll(folder)
    files = (owner.path / name for owner in RunDir.all(run.path.parent) for name in (CONVERSATIONS, PAIRS))
    collected = [path for path in files if path.is_file()]
    if exchange is not None:
        answer = find_answer(run, exchange)
        numbers = {answer.id if answer else exchange}
    elif client is not None:
        numbers = {row["id"] for row in answers_store(folder).rows(columns=("id", "client")) if row["client"] == client}
    else:
        numbers = {*_containing(folder, str(containing)), *_lines_containing(collected, str(containing))}
    ids = pa.array(sorted(numbers), pa.string())
    erased = {
        kind: each.store(folder).delete(partial(_is_of, each.ids, ids, client if kind == "rating" else None))
        for kind, each in STORES.items()
    }
    exported = list((folder / "review").glob("*.jsonl")) if any(erased.values()) else []
    for path in exported:  # `ropewalk review` makes them anew
        path.unlink()
    return {**erased, "review file": len(exported)}, trace_documents(numbers, run.path.parent, map(str, collected))


def _roll(folder: Path) -> None:
    """Wait until all records written so far are in shards, which can be rewritten beside a running writer."""
    stores = [each.store(folder) for each in STORES.values()]
    spools, deadline = {path for store in stores for path in store.spools()}, time.monotonic() + WRITER_SECONDS
    request = folder / ROLL
    try:
        while spools:
            request.touch()
            for store in stores:
                store.roll()  # spools of dead writers
            spools &= {path for store in stores for path in store.spools()}
            if spools and time.monotonic() > deadline:
                raise ConfigError(
                    f"{min(spools)} is in use, so nothing was erased; end the reviews of the run, see that the disk has room, "
                    "and repeat the command"
                )
            time.sleep(LOOK_SECONDS if spools else 0)
    finally:
        request.unlink(missing_ok=True)


def _is_of(columns: Sequence[str], ids: pa.Array, client: str | None, table: pa.Table) -> pa.ChunkedArray:
    """Mark the records of exchanges, and those of a client."""
    marks = [pc.is_in(table[name], value_set=ids) for name in columns]
    return reduce(pc.or_, marks if client is None else [*marks, pc.fill_null(pc.equal(table["client"], client), False)])


def _containing(folder: Path, text: str) -> Iterator[str]:
    """Yield the ids of exchanges that contain a text, or whose feedback does."""
    for each in (each for each in STORES.values() if each.content):
        for row in each.store(folder).rows(columns=(each.ids[0], *each.content)):
            if any(_contains(row[name], text) for name in each.content):
                yield row[each.ids[0]]


def _lines_containing(paths: Iterable[Path], text: str) -> Iterator[str]:
    """Yield the ids of collected records that contain a text: their exchanges may be gone."""
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                number = id_of(line)
                if number is not None and any(_contains(orjson.loads(line).get(key), text) for key in RECORD_KEYS):
                    yield number


def _contains(value: Any, text: str) -> bool:
    """Return True if a JSON value contains a text, also in JSON within its texts, such as arguments of tool calls."""
    if isinstance(value, str):
        if text in value:
            return True
        try:
            return value.lstrip()[:1] in ("{", "[", '"') and _contains(orjson.loads(value), text)
        except orjson.JSONDecodeError:
            return False
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_contains(each, text) for each in inner)
