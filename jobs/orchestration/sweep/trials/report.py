"""The interface between a tuner and a trial, which is a run or a recorded curve, and the values that a scheduler gets."""

from typing import Any, Protocol

OBJECTIVE = "objective"  # name of the metric in reports, and in Ray Tune


class Trial(Protocol):
    """A trial, as Ray Tune's actors and the simulator drive it."""

    def next_report(self) -> dict[str, Any]:
        """Start or resume the trial unless it runs, and return its next value; with `done` if that is the last."""
        ...

    def leave(self) -> None:
        """Stop the trial, or pause it if no decision has ended it: the next report resumes it where it was."""
        ...


class ReportInterval:
    """Selects the values reported to a scheduler: the first at or after each multiple of its interval; None: only the last."""

    def __init__(self, every_steps: int | None, after: int = 0) -> None:
        self._every, self._passed = every_steps, after

    def due(self, step: int) -> bool:
        """Return True if the value of this step must be reported; call it once per step in ascending order."""
        if self._every is None or step // self._every <= self._passed // self._every:
            return False
        self._passed = step
        return True
