"""Answers that clients may rate: the newest in memory, older ones by a search of the ledger."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ropewalk.jobs.serving.feedback.store import Row, Store

MAX_RECENT = 20_000  # ids in memory, some 5 MB
SEARCH_SHARE, SEARCH_BURST_SECONDS = 0.1, 10.0  # at most this share of the writer's time, averaged over these seconds


class SearchLimitError(Exception):
    """Searches of the ledger take too much of the writer's time; the answer may or may not exist."""


@dataclass(slots=True)
class KnownAnswer:
    """An answer of the ledger, and the number of its ratings."""

    id: str
    time: float
    num_ratings: int = 0


class KnownAnswers:
    """Finds answers by request id or answer id."""

    def __init__(self, answers: Store, ratings: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers, self._ratings, self._clock = answers, ratings, clock
        self._recent: OrderedDict[str, KnownAnswer] = OrderedDict()
        self._paid_until = 0.0  # by the clock; searches must not run further ahead of it than their burst

    def add(self, rows: Iterable[Row]) -> None:
        """Remember rows of the ledger."""
        for row in rows:
            self._remember(row, KnownAnswer(row["id"], row["time"]))

    def find(self, number: str) -> KnownAnswer | None:
        """Return the answer with this request id or answer id, or None. Raises SearchLimitError."""
        if number in self._recent:
            return self._recent[number]
        began = self._clock()
        if self._paid_until > began:
            raise SearchLimitError
        row = self._answers.find(("id", "answer_id"), number)
        if row is not None:
            ratings = self._ratings.rows(row["time"], ("exchange",))
            num_ratings = sum(rating["exchange"] == row["id"] for rating in ratings)
            self._remember(row, KnownAnswer(row["id"], row["time"], num_ratings))
        cost = (self._clock() - began) / SEARCH_SHARE
        self._paid_until = max(self._paid_until, began - SEARCH_BURST_SECONDS) + cost
        return self._recent[number] if row is not None else None

    def _remember(self, row: Row, answer: KnownAnswer) -> None:
        for number in filter(None, (row["id"], row["answer_id"])):
            self._recent.setdefault(number, answer)
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
