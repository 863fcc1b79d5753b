"""Rank 0's account of the run's time: what earlier groups have left, and its own seconds by phase."""

import logging
import time
from dataclasses import replace
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.jobs.results.goodput import RETRY, Counted, Goodput, History, account, node_seconds_of, nodes_at, read_history

log = logging.getLogger(__name__)


class TimeAccount:
    """Cumulative seconds of the run by class. Made by rank 0 once its group has formed; each group makes its own."""

    def __init__(self, context: JobContext) -> None:
        """Account for the time before this process. Files that cannot be read only make the account incomplete."""
        self._phases = context.heart.phases
        now = time.time()
        began = now - self._phases.elapsed  # before the files are read, which takes time
        try:
            self._history = read_history(context.run, trains=True, afresh=True)
            left = context.heart.left  # newer than metrics and samples, if that rank 0 was killed here
            if left and (last := Counted(left["run_seconds"], TimeClass(left["run_class"]))).now is not TimeClass.STOPPED:
                self._history = replace(self._history, counted=(*self._history.counted, last))
        except (OSError, RopewalkError, ValueError, KeyError, TypeError) as error:
            log.warning("the time before this attempt is not accounted for: %s", error)
            self._history = History(now, (), ())
        earlier = account(self._history, began)
        retried = any(attempt.opened_by == RETRY for attempt in self._history.attempts[-1:])
        self._phases.begin(earlier.seconds, recovering=context.group > 1 or retried)
        nodes = nodes_at(self._history, now)
        if self._history.spare_nodes:  # the event of this group may not be there yet
            nodes = min(nodes, context.world_size // context.run.resources(context.attempt).local_world_size)
        self._earlier, self._nodes = earlier, max(1, nodes)

    def go_back(self, training_seconds: float | None) -> None:
        """Count the training since a checkpoint as redone. `training_seconds`: what counted when it was saved; None: unknown."""
        if training_seconds is not None:
            self._phases.set_training(training_seconds)

    @property
    def training_seconds(self) -> float:
        """Seconds of training that count."""
        return self._phases.seconds[TimeClass.TRAINING]

    def metrics(self) -> dict[str, float]:
        """Return the metrics until the current phase began."""
        return Goodput(self._phases.seconds).metrics()

    def record(self, following: TimeClass | None = None, *, until_now: bool = True) -> dict[str, Any]:
        """Count until now, or until the current phase began, and return the fields of the event.

        `following`: class of the time from then on; None: that of the phase.
        """
        if until_now:
            self._phases.split()
        seconds = self._phases.seconds
        node_seconds = node_seconds_of(seconds, self._earlier, self._nodes)
        plain = Goodput(seconds, node_seconds).plain()
        return {
            "seconds": plain["seconds"],
            "node_seconds": plain["node_seconds"],
            "nodes": self._nodes,
            "now": following or self._phases.name,
        }
