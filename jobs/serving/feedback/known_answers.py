"""Answers that clients may rate: the newest in memory, older ones by a search of the ledger."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ropewalk.jobs.serving.feedback.store import Row, Store

MAX_RECENT = 20_000  # ids in memory, some 5 MB
# of the writer's time, averaged over these seconds: at most these shares for the searches of one client, and of all
CLIENT_SHARE, TOTAL_SHARE, BURST_SECONDS = 0.1, 0.5, 10.0


class SearchLimitError(Exception):
    """Searches of the ledger take too much of the writer's time; the answer may or may not exist."""


@dataclass(slots=True)
class KnownAnswer:
    """An answer of the ledger, and the number of its ratings."""

    id: str
    time: float
    num_ratings: int = 0


class _Budget:
    """Share of the time that searches may take."""

    def __init__(self, share: float) -> None:
        self._share, self.paid_until = share, 0.0  # by the clock; searches must not run further ahead of it than their burst

    def pay(self, began: float, seconds: float) -> None:
        """Count a search."""
        self.paid_until = max(self.paid_until, began - BURST_SECONDS) + seconds / self._share


class KnownAnswers:
    """Finds answers by request id or answer id."""

    def __init__(self, answers: Store, ratings: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers, self._ratings, self._clock = answers, ratings, clock
        self._recent: OrderedDict[str, KnownAnswer] = OrderedDict()
        self._total = _Budget(TOTAL_SHARE)
        self._clients: dict[str | None, _Budget] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Remember rows of the ledger."""
        for row in rows:
            self._remember(row, KnownAnswer(row["id"], row["time"]))

    def find(self, number: str, client: str | None = None) -> KnownAnswer | None:
        """Return the answer with this request id or answer id, or None. Raises SearchLimitError.

        `client`: the one that asks; its slow searches do not use up the time of others.
        """
        if number in self._recent:
            return self._recent[number]
        began = self._clock()
        budgets = (self._total, self._clients.setdefault(client, _Budget(CLIENT_SHARE)))
        if any(budget.paid_until > began for budget in budgets):
            raise SearchLimitError
        row = self._answers.find(("id", "answer_id"), number)
        if row is not None:
            ratings = self._ratings.rows(row["time"], ("exchange",))
            num_ratings = sum(rating["exchange"] == row["id"] for rating in ratings)
            self._remember(row, KnownAnswer(row["id"], row["time"], num_ratings))
        now = self._clock()
        for budget in budgets:
            budget.pay(began, now - began)
        self._clients = {each: budget for each, budget in self._clients.items() if budget.paid_until > now - BURST_SECONDS}
        return self._recent[number] if row is not None else None

    def _remember(self, row: Row, answer: KnownAnswer) -> None:
        for number in filter(None, (row["id"], row["answer_id"])):
            self._recent.setdefault(number, answer)
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
