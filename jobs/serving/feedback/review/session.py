"""One reviewer's way through the items: what comes next, what was said, what is left."""

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.read import Captured, exchanges
from ropewalk.jobs.serving.feedback.review.agreement import Agreement, agreements
from ropewalk.jobs.serving.feedback.review.items import Item, find_items
from ropewalk.jobs.serving.feedback.review.judgements import Choice, Judging, judgements_store, standing
from ropewalk.jobs.serving.feedback.review.samples import Sampler, known_samples

REFRESH_SECONDS = 30.0  # between two looks for exchanges that have come since
AHEAD = 3  # items whose second answers are drawn before they are shown
SAMPLE_SECONDS = 45.0  # for so long a page waits for a second answer

# what a button on the page says → what is written down, where the left answer is the item's first and where it is not
_CHOICES: dict[str, tuple[Choice, Choice]] = {
    "left": ("first", "second"),
    "right": ("second", "first"),
    "both": ("both", "both"),
    "neither": ("neither", "neither"),
    "skip": ("skip", "skip"),
}
WORDS = tuple(_CHOICES)


class Progress(NamedTuple):
    """How far a reviewer is."""

    judged: int
    total: int
    corrected: int


class Review:
    """The items of a run and the judgements of one reviewer. Threads of a server may call it at the same time."""

    def __init__(self, run: RunDir, reviewer: str, kinds: Sequence[Kind], sampler: Sampler | None = None) -> None:
        self.run, self.reviewer, self.sampler = run, reviewer, sampler
        self.judging = Judging(run.path, reviewer, kinds)
        self._lock = threading.RLock()
        self._items: list[Item] = []
        self._captured: dict[str, Captured] = {}
        self._read = float("-inf")

    def current(self) -> Item | None:
        """The first item, in the order of all reviewers, that this one has not judged."""
        with self._lock:
            self._refresh()
            left = [item for item in self._items if item.id not in self.judging.own]
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

    def judge(self, number: str, word: str, corrected: str = "", correction: str = "") -> bool:
        """Write down what was said of an item, `word` being one of WORDS; False if it is not the one that is being judged."""
        with self._lock:
            self._refresh()
            item = next((i for i in self._items if i.id == number), None)
            if item is None or item.id in self.judging.own or word not in _CHOICES:
                return False
            left, right = item.sides(self.reviewer)
            choice = _CHOICES[word][0 if left is item.first else 1]
            if item.second is None:
                choice = {"left": "both", "right": "neither"}.get(word, choice)  # type: ignore[assignment]
            side = right if corrected == "right" and right else left
            second = item.second.id if item.second else None
            self.judging.add(item.id, item.first.id, second, choice, corrected=side.id, correction=correction.strip() or None)
            return True

    def undo(self) -> bool:
        """Take the newest judgement back: its item is shown again."""
        with self._lock:
            return self.judging.undo() is not None

    def progress(self) -> Progress:
        """How far this reviewer is."""
        with self._lock:
            self._refresh()
            own = [judged for item in self._items if (judged := self.judging.own.get(item.id))]
            return Progress(len(own), len(self._items), sum(bool(judged.correction) for judged in own))

    def agreements(self) -> list[Agreement]:
        """How far reviewers agree by now."""
        return agreements(standing(judgements_store(self.run.path).read().to_pylist()))

    def close(self) -> None:
        """Stop drawing answers, and make shards of what was written."""
        if self.sampler:
            self.sampler.close()
        self.judging.close()

    def _refresh(self) -> None:
        if time.monotonic() - self._read < REFRESH_SECONDS:
            return
        self._read = time.monotonic()
        captured = list(exchanges(self.run.path))
        self._captured = {one.id: one for one in captured}
        samples = self.sampler.found if self.sampler else known_samples(self.run.path)[0]
        self._items = find_items(captured, samples)
