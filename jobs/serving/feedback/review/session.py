"""One reviewer's session: the current item, its judgement, and the progress."""

import threading
import time
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.read import CapturedExchange, exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER, judgements_store
from ropewalk.jobs.serving.feedback.review.items import Item, find_items
from ropewalk.jobs.serving.feedback.review.judgements import Agreement, Choice, JudgementLog, agreements, current_judgements
from ropewalk.jobs.serving.feedback.review.samples import Sampler, known_samples

REFRESH_SECONDS = 30.0  # between reads of new exchanges
MAX_EXCHANGES = 10_000  # the newest ones are reviewed
AHEAD = 3  # items whose second answers are sampled in advance
SAMPLE_SECONDS = 45.0  # time a page waits for a second answer

# button → choice if the left answer is the item's first one, choice otherwise
_CHOICES: dict[str, tuple[Choice, Choice]] = {
    "left": ("first", "second"),
    "right": ("second", "first"),
    "both": ("both", "both"),
    "neither": ("neither", "neither"),
    "skip": ("skip", "skip"),
}


class Progress(NamedTuple):
    """Numbers of judged and corrected items, and of all items."""

    judged: int
    total: int
    corrected: int


class Review:
    """Items of a run and the judgements of one reviewer. Safe to call from several threads."""

    def __init__(self, run: RunDir, reviewer: str, kinds: Sequence[Kind], sampler: Sampler | None = None) -> None:
        self.run, self.reviewer, self.sampler = run, reviewer, sampler
        self.log = JudgementLog(run.path, reviewer, kinds)
        self._lock = threading.RLock()
        self._items: list[Item] = []
        self._captured: dict[str, CapturedExchange] = {}
        self._read = float("-inf")

    def current(self) -> Item | None:
        """Return the first item, in the common order, that this reviewer has not judged."""
        with self._lock:
            self._refresh()
            left = [item for item in self._items if item.id not in self.log.judgements]
            if not left:
                return None
            first = left[0]
            if self.sampler is None:
                return first
            self.sampler.want(self._captured[item.id] for item in left[:AHEAD] if item.second is None)
        if first.second is None and self.sampler.wait(first.id, SAMPLE_SECONDS):
            with self._lock:
                self._read = float("-inf")
                self._refresh()
                return next((item for item in self._items if item.id == first.id), first)
        return first

    def judge(self, number: str, button: str, corrected: str = "", correction: str = "") -> bool:
        """Record the judgement of an item by a button of the page; return False if it is not the current item."""
        with self._lock:
            self._refresh()
            item = next((i for i in self._items if i.id == number), None)
            if item is None or item.id in self.log.judgements or button not in _CHOICES:
                return False
            left, right = item.sides(self.reviewer)
            choice = _CHOICES[button][0 if left is item.first else 1]
            if item.second is None:
                choice = {"left": "both", "right": "neither"}.get(button, choice)  # type: ignore[assignment]
            side = right if corrected == "right" and right else left
            second = item.second.id if item.second else None
            text = correction.strip() or None
            made_at = self._captured[item.id].time
            self.log.add(item.id, made_at, item.first.id, second, choice, corrected=side.id, correction=text)
            return True

    def undo(self) -> bool:
        """Revert the newest judgement, so that its item is shown again."""
        with self._lock:
            return self.log.undo() is not None

    def progress(self) -> Progress:
        with self._lock:
            self._refresh()
            judgements = [judged for item in self._items if (judged := self.log.judgements.get(item.id))]
            return Progress(len(judgements), len(self._items), sum(bool(judged.correction) for judged in judgements))

    def agreements(self) -> list[Agreement]:
        return agreements(current_judgements(judgements_store(self.run.path / FOLDER).read().to_pylist()))

    def close(self) -> None:
        if self.sampler:
            self.sampler.close()
        self.log.close()

    def _refresh(self) -> None:
        if time.monotonic() - self._read < REFRESH_SECONDS:
            return
        self._read = time.monotonic()
        captured = list(islice(exchanges(self.run.path, newest_first=True), MAX_EXCHANGES))
        self._captured = {exchange.id: exchange for exchange in captured}
        samples = self.sampler.samples if self.sampler else known_samples(self.run.path)[0]
        self._items = find_items(captured, samples)
