"""How a sweep stands, for whoever follows it: read anew at most once a second."""

import time
from typing import TYPE_CHECKING

from cluster.run.directory import RunDir
from jobs.sweep.results import Answers, SweepReader, metric_word

if TYPE_CHECKING:
    from rich.console import RenderableType

READ_SECONDS = 1.0


class Standing:
    """The sweep's trials as words beside a bar, and as a table below it."""

    def __init__(self, run: RunDir) -> None:
        self._reader, self._next = SweepReader(run), 0.0
        self._answers: Answers | None = None

    def read(self) -> Answers:
        """The newest answers, up to a second old."""
        now = time.monotonic()
        if self._answers is None or now >= self._next:
            self._answers, self._next = self._reader.read(), now + READ_SECONDS
        return self._answers

    def words(self) -> str:
        """`3 running  best validation/loss 3.214 (trial 4)  1,200 steps`."""
        answers = self.read()
        running, best = answers.by_state.get("RUNNING", 0), answers.best
        parts = [f"{running} running"] if running else []
        if best is not None and best.metric is not None:
            parts.append(f"best {answers.metric} {metric_word(best.metric)} (trial {best.trial})")
        return "  ".join([*parts, f"{answers.spent:,} steps"])

    def table(self) -> "RenderableType":
        """The best trials so far."""
        from jobs.sweep.tables import live_table

        return live_table(self.read())
