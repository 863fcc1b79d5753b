"""Judgements of reviewers: append-only, one row per judgement or undo; and inter-annotator agreement (Cohen's kappa)."""

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.records import FOLDER, judgements_store
from ropewalk.jobs.serving.feedback.store import Row, Writer
from ropewalk.jobs.serving.feedback.summary import Share, share

Choice = Literal["first", "second", "both", "neither", "skip"]  # a single answer is `both` (good) or `neither` (bad)
CHOICES: tuple[Choice, ...] = get_args(Choice)
UNDO = "undo"
ROLL_BYTES, ROLL_SECONDS = 1 << 20, 3600.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One reviewer's judgement of one item."""

    id: str
    time: float
    reviewer: str
    item: str
    exchange_time: float
    first: str
    second: str | None
    choice: Choice
    corrected: str | None
    correction: str | None


def current_judgements(rows: Iterable[Row]) -> dict[str, dict[str, Judgement]]:
    """Return the newest judgement by reviewer and item that was not undone, in order."""
    rows = list(rows)
    undone = {row["undone"] for row in rows if row["choice"] == UNDO}
    current: dict[str, dict[str, Judgement]] = defaultdict(dict)
    for row in rows:
        if row["choice"] in CHOICES and row["id"] not in undone:
            current[row["reviewer"]].pop(row["item"], None)
            current[row["reviewer"]][row["item"]] = Judgement(**{k: v for k, v in row.items() if k != "undone"})
    return current


class JudgementLog:
    """Judgements of one reviewer; each is on disk before the next item is shown."""

    def __init__(self, run: Path, reviewer: str, kinds: Sequence[Kind]) -> None:
        self.reviewer, self._kinds = reviewer, kinds
        self._writer = Writer(judgements_store(run / FOLDER), ROLL_BYTES, ROLL_SECONDS)
        self.judgements = current_judgements(self._writer.store.read().to_pylist()).get(reviewer, {})

    def add(
        self, item: str, exchange_time: float, first: str, second: str | None, choice: Choice, **correction: str | None
    ) -> None:
        """Record a judgement; a correction is masked first. Raises OSError if it cannot be written."""
        masked: Any = correction.get("correction")
        if masked:
            (masked,), _ = mask([masked], self._kinds)
        row = {**self._row(item, exchange_time), "first": first, "second": second, "choice": choice}
        row |= {"corrected": correction.get("corrected") if masked else None, "correction": masked or None}
        self._append(row)
        self.judgements[item] = Judgement(**row)

    def undo(self) -> str | None:
        """Revert the newest judgement and return its item; None if there is none."""
        if not self.judgements:
            return None
        item, last = self.judgements.popitem()
        self._append({**self._row(item, last.exchange_time), "choice": UNDO, "undone": last.id})
        return item

    def close(self) -> None:
        self._writer.roll()

    def _row(self, item: str, exchange_time: float) -> Row:
        about = {"reviewer": self.reviewer, "item": item, "exchange_time": exchange_time}
        return {"id": f"judgement-{secrets.token_hex(8)}", "time": time.time(), **about}

    def _append(self, row: Row) -> None:
        self._writer.append([row])
        self._writer.sync()


@dataclass(frozen=True)
class Agreement:
    """Agreement of two reviewers on the items both have judged."""

    reviewers: tuple[str, str]
    equal: Share  # share of items with equal judgements
    kappa: float | None  # Cohen (1960): 0 is chance, 1 is perfect; None if chance alone gives perfect agreement


def agreements(standing: Mapping[str, Mapping[str, Judgement]]) -> list[Agreement]:
    """Return the agreement of every two reviewers who judged the same pairs of answers, without skipped ones."""
    results = []
    for first, second in combinations(sorted(standing), 2):
        pairs = [
            (judgement.choice, counterpart.choice)
            for item, judgement in standing[first].items()
            if (counterpart := standing[second].get(item))
            and "skip" not in (judgement.choice, counterpart.choice)
            and judgement.second == counterpart.second
        ]
        if pairs:
            equal = share([float(a == b) for a, b in pairs], [str(n) for n in range(len(pairs))])
            results.append(Agreement((first, second), equal, kappa(pairs)))
    return results


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two raters on the same items."""
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[label] * second[label] for label in first) / n**2
    return None if chance == 1 else (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)


def text_of(content: Any) -> str:
    """Render an answer for people: its texts, and its tool calls as JSON."""
    if isinstance(content, str):
        return content
    parts = []
    for message in content:
        parts.append(str(message.get("content") or ""))
        parts += [
            orjson.dumps(call.get("function") or call).decode()
            for call in message.get("tool_calls") or ()
            if isinstance(call, dict)
        ]
    return "\n".join(filter(None, parts))
