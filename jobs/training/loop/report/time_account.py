"""Rank 0's account of the run's time: what earlier groups have left, and its own seconds by phase."""

import logging
import time
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.jobs.results.goodput import RETRY, Goodput, History, account, node_seconds_of, nodes_at, read_history

log = logging.getLogger(__name__)


class TimeAccount:
    """Cumulative seconds of the run by class. Made by rank 0 once its group has formed; each group makes its own."""

    def __init__(self, context: JobContext) -> None:
        """Account for the time before this process. Files that cannot be read only make the account incomplete."""
        self._phases = context.heart.phases
        now = time.time()
        try:
            self._history = read_history(context.run, trains=True, afresh=True)
        except (OSError, RopewalkError, ValueError, KeyError, TypeError) as error:
            log.warning("the time before this attempt is not accounted for: %s", error)
            self._history = History(now, (), ())
        earlier = account(self._history, now - self._phases.elapsed)
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

    def record(self, following: TimeClass | None = None) -> dict[str, Any]:
        """Count until now, and return the fields of the event. `following`: class of the time from now on; None: as before."""
        self._phases.split()
        seconds = self._phases.seconds
        node_seconds = node_seconds_of(seconds, self._earlier, self._nodes)
        plain = Goodput(seconds, node_seconds).plain()
        return {
            "seconds": plain["seconds"],
            "node_seconds": plain["node_seconds"],
            "nodes": self._nodes,
            "now": self._phases.name,
        }
