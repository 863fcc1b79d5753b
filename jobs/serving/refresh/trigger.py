"""What begins a round: time, feedback, drift."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.records import FOLDER, ratings_store
from ropewalk.jobs.serving.refresh.config import TriggerConfig

HOUR_SECONDS = 3600.0

DriftLook = Callable[[Mapping[str, Any]], dict[str, Any]]  # the state of all looks so far → {alarm, words, state, figures}


class Trigger:
    """Asks, look after look, whether a round begins."""

    def __init__(self, config: TriggerConfig, served: RunDir, drift: DriftLook, clock: Callable[[], float] = time.time) -> None:
        self.config, self.served, self.drift, self.clock = config, served, drift, clock

    def ask(self, began: float, before: float | None, looks: dict[str, Any]) -> dict[str, Any] | None:
        """Why a round begins now: {why, words, time, ...}; None: it does not.

        `began` is when the wait began, `before` when the trigger of the round before fired; `looks` holds the looks for drift of
        all rounds, and is changed. Nothing set: at once.
        """
        now, config = self.clock(), self.config
        if config.every_hours is None and config.feedback is None and config.drift is None:
            return {"why": "start", "words": "it was started", "time": now}
        if config.every_hours is not None and now - began >= config.every_hours * HOUR_SECONDS:
            return {"why": "schedule", "words": f"{config.every_hours:g} hours have passed", "time": now}
        if config.feedback is not None:
            told = ratings_store(self.served.path / FOLDER).read(before).num_rows
            if told >= config.feedback:
                return {"why": "feedback", "words": f"{told} answers were rated or corrected", "time": now, "ratings": told}
        if config.drift is not None and now >= looks.get("next", 0.0):
            found = self.drift(looks.get("state") or {})
            looks |= {"next": now + config.drift.every_hours * HOUR_SECONDS, "state": found["state"], "last": found["words"]}
            if found["alarm"]:
                return {"why": "drift", "words": found["words"], "time": now, "drift": found["figures"]}
        return None
