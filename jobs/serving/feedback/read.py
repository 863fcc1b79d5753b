"""What an endpoint was asked, what it answered, and what people said of it, joined."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store, ratings_store
from ropewalk.jobs.serving.feedback.store import DAY_SECONDS, Row


@dataclass(frozen=True, kw_only=True)
class Rating:
    """What one person said of one answer."""

    id: str
    time: float
    answer_id: str  # as it was given: of the answer's body, or of the request
    rating: str | None  # up, down
    score: float | None  # 0 to 1
    correction: Any  # a text, or messages
    comment: str | None
    user: str | None
    source: str

    @property
    def value(self) -> float | None:
        """The score, or 1 for up and 0 for down; None where only words were said."""
        if self.score is not None:
            return self.score
        return {"up": 1.0, "down": 0.0}.get(self.rating or "")


@dataclass(frozen=True, kw_only=True)
class Captured:
    """An exchange, masked, with what was said of it."""

    id: str
    time: float  # seconds since the epoch
    answer_id: str | None
    alias: str
    version: str
    outcome: str
    conversation: str  # equal for exchanges that begin with the same words
    prompt: str  # the user's last message, or the prompt of a completion
    answer: str | None  # the text of the first choice
    messages: Any  # all messages of the request, or the prompt of a completion
    choices: list[dict[str, Any]]
    tools: Any
    sampling: dict[str, Any]
    ratings: tuple[Rating, ...] = ()

    @property
    def rating(self) -> int | None:
        """+1 or -1 as most who rated it have it; None where nobody did, or they are divided."""
        values = [rating.value for rating in self.ratings if rating.value is not None]
        balance = sum((value > 0.5) - (value < 0.5) for value in values)
        return (balance > 0) - (balance < 0) or None

    @property
    def correction(self) -> Any:
        """The newest correction: a text, or messages."""
        return next((r.correction for r in reversed(self.ratings) if r.correction), None)


@dataclass(frozen=True)
class Feedback:
    """All of a run: captured exchanges, and ratings of answers whose content was not captured, or of which nobody knows."""

    exchanges: list[Captured]
    uncaptured: list[tuple[Row, Rating]]  # with the ledger's row of the answer
    unknown: list[Rating]  # joined as soon as their answer turns up
    answers: list[Row]  # the ledger: every answer, without content


def exchanges(
    run: Path, since: float | None = None, until: float | None = None, *, said_until: float | None = None
) -> Iterator[Captured]:
    """The captured exchanges of a run's directory, by time, with their ratings, as they were before `said_until`.

    Times are in seconds since the epoch.
    """
    said = _by_answer(rating for rating in _ratings(run) if said_until is None or rating.time < said_until)
    for row in exchanges_store(run / FOLDER).read(since).to_pylist():
        if until is None or row["time"] < until:
            yield _captured(row, said)


def read(run: RunDir, since: float | None = None) -> Feedback:
    """Exchanges and answers of this time and later, and what was ever said of them."""
    ratings = _ratings(run.path)
    found = list(exchanges(run.path, since))
    answers = answers_store(run.path / FOLDER).read(since).to_pylist()
    known = {number: row for row in answers for number in (row["id"], row["answer_id"]) if number}
    captured = {number for one in found for number in (one.id, one.answer_id) if number}
    rest = [rating for rating in ratings if rating.answer_id not in captured]
    uncaptured: dict[str, tuple[Row, list[Rating]]] = {}
    for rating in rest:
        if row := known.get(rating.answer_id):
            uncaptured.setdefault(row["id"], (row, []))[1].append(rating)
    return Feedback(
        found,
        [(row, rating) for row, said in uncaptured.values() for rating in _newest(said)],
        [r for r in rest if r.answer_id not in known and (since is None or r.time >= since)],
        answers,
    )


def refuse_without_capture(run: RunDir) -> None:
    """Raise ConfigError for a run that answers nobody: it neither captured anything, nor could have."""
    if not (run.path / FOLDER).is_dir() and "capture" not in (run.record.get("config") or {}):
        raise ConfigError(f"{run.id} is a {run.record.get('job')} run, which answers nobody; name a run of serve")


def enforce_retention(run: RunDir, now: float | None = None) -> int:
    """Delete what is older than the run's configuration lets it be kept; how many records. A living writer does so by itself."""
    capture = (run.record.get("config") or {}).get("capture")
    if not capture or "retention_days" not in capture:
        return 0
    moment = (now or time.time()) - float(capture["retention_days"]) * DAY_SECONDS
    folder = run.path / FOLDER
    stores = exchanges_store(folder), ratings_store(folder)
    for store in stores:
        store.roll()  # of writers that are gone
    return sum(store.delete_before(moment) for store in stores)


def _ratings(run: Path) -> list[Rating]:
    rows = ratings_store(run / FOLDER).read().to_pylist()
    return [Rating(**{**row, "correction": _json(row["correction"])}) for row in rows]


def _by_answer(ratings: Iterable[Rating]) -> dict[str, list[Rating]]:
    found: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        found[rating.answer_id].append(rating)
    return found


def _newest(ratings: Iterable[Rating]) -> tuple[Rating, ...]:
    """The newest rating of each user of one answer, by time; whoever gave no tag is somebody new each time."""
    ordered = sorted(ratings, key=lambda r: r.time)
    return tuple(sorted({r.user or r.id: r for r in ordered}.values(), key=lambda r: r.time))


def _captured(row: Row, said: dict[str, list[Rating]]) -> Captured:
    names = {row["id"], row["answer_id"]} - {None}
    ratings = _newest(r for name in names for r in said.get(name, ()))
    parsed = {name: _json(row[name]) for name in ("messages", "choices", "tools", "sampling")}
    plain = ("id", "time", "answer_id", "alias", "version", "outcome", "conversation", "prompt", "answer")
    return Captured(**{name: row[name] for name in plain}, **parsed, ratings=ratings)


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
