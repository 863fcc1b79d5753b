"""What reviewers have judged: one row a judgement, appended and never changed; an undo is a row too."""

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
import pyarrow as pa

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.records import FOLDER
from ropewalk.jobs.serving.feedback.store import Row, Store, Writer

Choice = Literal["first", "second", "both", "neither", "skip"]  # alone, an answer is `both` (good) or `neither`
CHOICES: tuple[Choice, ...] = get_args(Choice)
UNDO = "undo"
_TEXT = pa.string()
JUDGEMENTS = pa.schema(
    [
        *(("id", _TEXT), ("time", pa.float64()), ("reviewer", _TEXT)),
        *(("item", _TEXT), ("first", _TEXT), ("second", _TEXT), ("choice", _TEXT)),
        *(("corrected", _TEXT), ("correction", _TEXT)),  # the id of the answer that was corrected; what it should be
        ("undone", _TEXT),  # the judgement that an undo takes back
    ]
)
ROLL_BYTES, ROLL_SECONDS = 1 << 20, 3600.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One reviewer's word on one item."""

    id: str
    time: float
    reviewer: str
    item: str
    first: str
    second: str | None
    choice: Choice
    corrected: str | None
    correction: str | None


def judgements_store(run: Path) -> Store:
    """All judgements of a run, of all reviewers."""
    return Store(run / FOLDER / "judgements", JUDGEMENTS)


def standing(rows: Iterable[Row]) -> dict[str, dict[str, Judgement]]:
    """By reviewer and item, the judgements that nobody has taken back; the newest of each, in their order."""
    rows = list(rows)
    undone = {row["undone"] for row in rows if row["choice"] == UNDO}
    found: dict[str, dict[str, Judgement]] = defaultdict(dict)
    for row in rows:
        if row["choice"] in CHOICES and row["id"] not in undone:
            found[row["reviewer"]].pop(row["item"], None)
            found[row["reviewer"]][row["item"]] = Judgement(**{k: v for k, v in row.items() if k != "undone"})
    return found


class Judging:
    """One reviewer at work: each judgement is on the disk before the next item is shown."""

    def __init__(self, run: Path, reviewer: str, kinds: Sequence[Kind]) -> None:
        self.reviewer, self._kinds = reviewer, kinds
        self._writer = Writer(judgements_store(run), ROLL_BYTES, ROLL_SECONDS)
        self.own = standing(self._writer.store.read().to_pylist()).get(reviewer, {})

    def add(self, item: str, first: str, second: str | None, choice: Choice, **correction: str | None) -> None:
        """Write a judgement down; a correction is masked before. Raises OSError where it cannot be written."""
        said: Any = correction.get("correction")
        if said:
            (said,), _ = mask([said], self._kinds)
        row = {**self._row(), "item": item, "first": first, "second": second, "choice": choice}
        row |= {"corrected": correction.get("corrected") if said else None, "correction": said or None}
        self._append(row)
        self.own[item] = Judgement(**row)

    def undo(self) -> str | None:
        """Take the newest judgement back; its item. None where there is none."""
        if not self.own:
            return None
        item, last = self.own.popitem()
        self._append({**self._row(), "item": item, "choice": UNDO, "undone": last.id})
        return item

    def close(self) -> None:
        """Make a shard of what was written."""
        self._writer.roll()

    def _row(self) -> Row:
        return {"id": f"judgement-{secrets.token_hex(8)}", "time": time.time(), "reviewer": self.reviewer}

    def _append(self, row: Row) -> None:
        self._writer.append([row])
        self._writer.sync()


def text_of(said: Any) -> str:
    """An answer as a person reads it: its words, and its tool calls as JSON."""
    if isinstance(said, str):
        return said
    parts = []
    for message in said:
        parts.append(str(message.get("content") or ""))
        parts += [
            orjson.dumps(call.get("function") or call).decode()
            for call in message.get("tool_calls") or ()
            if isinstance(call, dict)
        ]
    return "\n".join(filter(None, parts))
