"""CapturedExchange exchanges of a serving run, joined with their ratings."""

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
    """Feedback of one user on one answer."""

    id: str
    time: float
    answer_id: str  # as sent by the client: answer id or request id
    rating: str | None  # up, down
    score: float | None  # 0 to 1
    correction: Any  # a text, or messages
    comment: str | None
    user: str | None
    source: str
    client: str | None = None  # name of the token that sent it

    @property
    def value(self) -> float | None:
        """The score, or 1 for up and 0 for down; None for feedback without a rating."""
        if self.score is not None:
            return self.score
        return {"up": 1.0, "down": 0.0}.get(self.rating or "")


@dataclass(frozen=True, kw_only=True)
class CapturedExchange:
    """A masked exchange with its ratings."""

    id: str
    time: float  # seconds since the epoch
    answer_id: str | None
    alias: str
    version: str
    outcome: str
    conversation: str  # hash of the first user message
    prompt: str  # the user's last message, or the prompt of a completion
    answer: str | None  # the text of the first choice
    messages: Any  # all messages of the request, or the prompt of a completion
    choices: list[dict[str, Any]]
    tools: Any
    sampling: dict[str, Any]
    client: str | None = None  # name of the token that sent it
    ratings: tuple[Rating, ...] = ()

    @property
    def rating(self) -> int | None:
        """Majority of all ratings, +1 or -1; None without ratings or with a tie."""
        values = [rating.value for rating in self.ratings if rating.value is not None]
        balance = sum((value > 0.5) - (value < 0.5) for value in values)
        return (balance > 0) - (balance < 0) or None

    @property
    def correction(self) -> Any:
        """Newest correction: a text, or messages."""
        return next((r.correction for r in reversed(self.ratings) if r.correction), None)


@dataclass(frozen=True)
class Feedback:
    """All feedback of a run, including ratings of answers whose content was not captured or that are unknown."""

    exchanges: list[CapturedExchange]
    uncaptured: list[tuple[Row, Rating]]  # ledger row of the answer, rating
    unknown: list[Rating]  # ratings whose answer is not in the ledger (yet)
    answers: list[Row]  # ledger rows: all answers, without content


def exchanges(
    run: Path, since: float | None = None, until: float | None = None, *, rated_until: float | None = None
) -> Iterator[CapturedExchange]:
    """Yield the captured exchanges of a run's directory by time, with their ratings from before `rated_until`.

    Times are seconds since the epoch.
    """
    ratings_of = _by_answer(rating for rating in _ratings(run) if rated_until is None or rating.time < rated_until)
    for row in exchanges_store(run / FOLDER).read(since).to_pylist():
        if until is None or row["time"] < until:
            yield _exchange(row, ratings_of)


def read(run: RunDir, since: float | None = None) -> Feedback:
    """Return exchanges and answers since a time, and all ratings of them."""
    ratings = _ratings(run.path)
    captured = list(exchanges(run.path, since))
    answers = answers_store(run.path / FOLDER).read(since).to_pylist()
    by_number = {number: row for row in answers for number in (row["id"], row["answer_id"]) if number}
    captured_ids = {number for exchange in captured for number in (exchange.id, exchange.answer_id) if number}
    rest = [rating for rating in ratings if rating.answer_id not in captured_ids]
    uncaptured: dict[str, tuple[Row, list[Rating]]] = {}
    for rating in rest:
        if row := by_number.get(rating.answer_id):
            uncaptured.setdefault(row["id"], (row, []))[1].append(rating)
    return Feedback(
        captured,
        [(row, rating) for row, given_ratings in uncaptured.values() for rating in _newest(given_ratings)],
        [r for r in rest if r.answer_id not in by_number and (since is None or r.time >= since)],
        answers,
    )


def refuse_without_capture(run: RunDir) -> None:
    """Raise ConfigError if the run is not a serving run: it has no feedback and no capture key."""
    if not (run.path / FOLDER).is_dir() and "capture" not in (run.record.get("config") or {}):
        raise ConfigError(f"{run.id} is a {run.record.get('job')} run; name a serving run")


def enforce_retention(run: RunDir, now: float | None = None) -> int:
    """Delete records older than the run's retention and return their number. A running writer does this by itself."""
    capture = (run.record.get("config") or {}).get("capture")
    if not capture or "retention_days" not in capture:
        return 0
    moment = (now or time.time()) - float(capture["retention_days"]) * DAY_SECONDS
    folder = run.path / FOLDER
    stores = exchanges_store(folder), ratings_store(folder)
    for store in stores:
        store.roll()  # spools left by dead writers
    return sum(store.delete_before(moment) for store in stores)


def _ratings(run: Path) -> list[Rating]:
    rows = ratings_store(run / FOLDER).read().to_pylist()
    return [Rating(**{**row, "correction": _json(row["correction"])}) for row in rows]


def _by_answer(ratings: Iterable[Rating]) -> dict[str, list[Rating]]:
    grouped: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        grouped[rating.answer_id].append(rating)
    return grouped


def _newest(ratings: Iterable[Rating]) -> tuple[Rating, ...]:
    """Return the newest rating of each user, by time; ratings without a user tag all count."""
    ordered = sorted(ratings, key=lambda r: r.time)
    return tuple(sorted({r.user or r.id: r for r in ordered}.values(), key=lambda r: r.time))


def _exchange(row: Row, ratings_of: dict[str, list[Rating]]) -> CapturedExchange:
    names = {row["id"], row["answer_id"]} - {None}
    ratings = _newest(r for name in names for r in ratings_of.get(name, ()))
    parsed = {name: _json(row[name]) for name in ("messages", "choices", "tools", "sampling")}
    plain = ("id", "time", "answer_id", "alias", "version", "outcome", "conversation", "prompt", "answer", "client")
    return CapturedExchange(**{name: row[name] for name in plain}, **parsed, ratings=ratings)


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
