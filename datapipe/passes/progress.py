"""Progress and speed of a long job, reported at most twice a second."""

import time
from collections.abc import Callable
from typing import Any

INTERVAL_SECONDS = 0.5


class Progress:
    """Counts the work done in a stage, and calls `report` with {stage, done, total, unit, rates}."""

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        on_slow_tokenizer: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.report, self.clock, self.on_slow_tokenizer = report, clock, on_slow_tokenizer
        self.stage, self.unit, self.total, self.done = "", "", 0, 0
        self.documents, self.bytes = 0, 0
        self.began = self.reported = 0.0

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a stage; `done` is the amount that earlier attempts finished."""
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self.documents, self.bytes = 0, 0
        self.began = self.clock()
        self._report()

    def add(self, done: int, documents: int = 0, text_bytes: int = 0) -> None:
        """Count newly finished work."""
        self.done += done
        self.documents += documents
        self.bytes += text_bytes
        if self.done >= self.total or self.clock() - self.reported >= INTERVAL_SECONDS:
            self._report()

    def _report(self) -> None:
        self.reported = self.clock()
        seconds = max(self.reported - self.began, 1e-3)
        rates = {"documents/s": round(self.documents / seconds, 1), "MB/s": round(self.bytes / 1e6 / seconds, 3)}
        self.report({"stage": self.stage, "done": self.done, "total": self.total, "unit": self.unit, "rates": rates})
