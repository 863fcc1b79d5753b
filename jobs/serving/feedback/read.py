"""Captured exchanges of a serving run, joined with their ratings, and its answers in the ledger that every endpoint keeps."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.records import FOLDER, RATINGS, answers_store, exchanges_store, ratings_store

_PLAIN = ("id", "time", "answer_id", "alias", "version", "outcome", "conversation", "prompt", "answer", "client")


@dataclass(frozen=True, kw_only=True)
class Rating:
    """Feedback of one user on one answer."""

    id: str
    time: float
    exchange: str  # id of the rated exchange
    exchange_time: float
    rating: str | None  # up, down
    score: float | None  # 0 to 1
    correction: Any  # a text, or messages
    comment: str | None
    user: str | None
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

    @property
    def teacher(self) -> str | None:
        """Name of the client that corrected the answer, else of the one that asked."""
        return next((r.client for r in reversed(self.ratings) if r.correction), self.client)


class Ratings:
    """All ratings of a run by exchange. They stay in mapped files: only their positions are in memory."""

    def __init__(self, folder: Path, until: float | None = None) -> None:
        """Index the ratings from before `until`."""
        self._table = pa.concat_tables([RATINGS.empty_table(), *ratings_store(folder).tables()])
        self._rows: dict[str, list[int]] = defaultdict(list)
        columns = (self._table[name].to_pylist() for name in ("exchange", "time"))
        for row, (exchange, time) in enumerate(zip(*columns, strict=True)):
            if until is None or time < until:
                self._rows[exchange].append(row)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids of the rated exchanges."""
        return iter(self._rows)

    def of(self, exchange: str) -> tuple[Rating, ...]:
        """Return the newest rating of each user by time; ratings without a user tag all count."""
        rows = (self._table.slice(row, 1).to_pylist()[0] for row in self._rows.get(exchange, ()))
        ratings = sorted((Rating(**{**row, "correction": _json(row["correction"])}) for row in rows), key=lambda r: r.time)
        newest = {(r.client, r.user) if r.user else r.id: r for r in ratings}
        return tuple(sorted(newest.values(), key=lambda r: r.time))


def exchanges(
    run: Path,
    since: float | None = None,
    until: float | None = None,
    *,
    rated_until: float | None = None,
    newest_first: bool = False,
) -> Iterator[CapturedExchange]:
    """Yield the captured exchanges of a run's directory, about by time, with their ratings from before `rated_until`.

    Times are seconds since the epoch.
    """
    ratings = Ratings(run / FOLDER, rated_until)
    for row in exchanges_store(run / FOLDER).rows(since, newest_first=newest_first):
        if until is None or row["time"] < until:
            parsed = {name: _json(row[name]) for name in ("messages", "choices", "tools", "sampling")}
            yield CapturedExchange(**{name: row[name] for name in _PLAIN}, **parsed, ratings=ratings.of(row["id"]))


class Answer(NamedTuple):
    """One answer of a serving run, without its content."""

    id: str  # request id, x-request-id
    answer_id: str | None  # `id` in the response body
    time: float  # seconds since the epoch
    alias: str
    version: str
    replica: str
    path: str
    status: int
    outcome: str
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_seconds: float | None
    seconds: float
    moves: int
    client: str | None = None  # name of its token


def find_answer(run: RunDir, number: str) -> Answer | None:
    """Return the answer with this answer id or request id, or None if the run has none."""
    row = answers_store(run.path / FOLDER).find(("answer_id", "id"), number)
    return Answer(**{name: row[name] for name in Answer._fields}) if row else None


def refuse_without_capture(run: RunDir) -> None:
    """Raise ConfigError if the run is not a serving run: it has no feedback and no capture key."""
    if not (run.path / FOLDER).is_dir() and "capture" not in (run.record.get("config") or {}):
        raise ConfigError(f"{run.id} is a {run.record.get('job')} run; name a serving run")


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
