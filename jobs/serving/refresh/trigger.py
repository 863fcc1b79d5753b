"""Conditions that start a refresh round: a schedule, enough new ratings, or drift."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.records import FOLDER, ratings_store
from ropewalk.jobs.serving.refresh.config import TriggerConfig

HOUR_SECONDS = 3600.0

DriftState = Mapping[str, Any]  # Monitor.plain(); empty before the first check


@dataclass(frozen=True)
class DriftReport:
    """Result of one drift check; `state` covers all checks so far."""

    alarm: bool
    message: str
    state: DriftState
    figures: Mapping[str, Any]


DriftCheck = Callable[[DriftState], DriftReport]


@dataclass
class DriftSchedule:
    """Drift checks of all rounds: the time of the next one, and the state and message of the last one."""

    next_check: float = 0.0  # seconds since the epoch
    state: DriftState = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class TriggerReason:
    """Reason to start a refresh round: the kind, a sentence for people, and the figures behind it."""

    kind: Literal["start", "schedule", "feedback", "drift"]
    message: str
    time: float  # seconds since the epoch
    figures: Mapping[str, Any] = field(default_factory=dict)


class RefreshTrigger:
    """Decides whether a refresh round is due."""

    def __init__(
        self, config: TriggerConfig, served_run: RunDir, check_drift: DriftCheck, clock: Callable[[], float] = time.time
    ) -> None:
        self.config, self.served_run, self.check_drift, self.clock = config, served_run, check_drift, clock

    def due(self, waiting_since: float, last_triggered: float | None, drift: DriftSchedule) -> TriggerReason | None:
        """Return the reason to start a round now, or None if no condition holds.

        With no condition configured a round is always due. `drift` records when drift was last checked and is updated here.
        Times are seconds since the epoch.
        """
        now, config = self.clock(), self.config
        if config.every_hours is None and config.feedback is None and config.drift is None:
            return TriggerReason("start", "the run was started", now)
        if config.every_hours is not None and now - waiting_since >= config.every_hours * HOUR_SECONDS:
            return TriggerReason("schedule", f"{config.every_hours:g} hours have passed", now)
        if config.feedback is not None:
            rows = ratings_store(self.served_run.path / FOLDER).rows(last_triggered, ("exchange",))
            num_rated = len({row["exchange"] for row in rows})
            if num_rated >= config.feedback:
                return TriggerReason("feedback", f"{num_rated} answers were rated or corrected", now, {"ratings": num_rated})
        if config.drift is not None and now >= drift.next_check:
            report = self.check_drift(drift.state)
            drift.next_check = now + config.drift.every_hours * HOUR_SECONDS
            drift.state, drift.message = report.state, report.message
            if report.alarm:
                return TriggerReason("drift", report.message, now, report.figures)
        return None
