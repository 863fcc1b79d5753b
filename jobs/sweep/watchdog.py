"""Watches a sweep from beside Tune: orders to leave, the budget, the death of Ray; and tells how far it is."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.engines.ray import stop_ray
from cluster.errors import EXIT_REQUEUE
from cluster.run.files import write_json
from jobs.sweep.context import ORDER, Scene
from jobs.sweep.records import TrialRecord, TrialState, read_records
from jobs.sweep.results import SweepReader

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class Watcher:
    """A thread of the driver. Its word (`order`) makes every trial leave, so that Tune has nothing more to do."""

    def __init__(self, scene: Scene, stop_requested: Callable[[], bool], total: int) -> None:
        self.scene, self._stop_requested, self._total = scene, stop_requested, total
        self.order = ""  # preempted, cancelled, budget, failures
        self.num_failed = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-watch", daemon=True)
        self._ray: subprocess.Popen[bytes] | None = None
        self._began = time.time()
        self._reader = SweepReader(scene.sweep)
        self._said: dict[str, Any] = {}

    def start(self, ray: subprocess.Popen[bytes] | None) -> None:
        """Begin to watch, Ray's first process too if it is the sweep's own."""
        self._ray = ray
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if self._ray is not None and self._ray.poll() is not None:
                self._leave_at_once(f"Ray ended with {self._ray.returncode}")
            try:
                self._look()
            except OSError as error:  # a file system that is away for a moment
                log.warning("cannot look after the trials: %s", error)

    def _look(self) -> None:
        records = read_records(self.scene.sweep)
        self.num_failed = sum(record.state is TrialState.FAILED for record in records)
        self._publish(records)
        if not self.order and (word := self._word(records)):
            log.info("all trials leave: %s", word)
            self.scene.sweep.event("sweep_ordered", order=word)
            write_json(self.scene.scratch / ORDER, {"order": word})
            self.order = word

    def _word(self, records: list[TrialRecord]) -> str:
        sweep, budget = self.scene.sweep, self.scene.config.budget
        if self._stop_requested():
            return "cancelled" if sweep.cancel_requested or sweep.orphaned else "preempted"
        most_failed = budget.failed_trials if budget.failed_trials is not None else max(3, self._total // 2)
        if self.num_failed > most_failed or (records and self.num_failed == self._total):
            return "failures"
        if budget.steps is not None and self._reader.read().spent >= budget.steps:
            return "budget"
        if budget.minutes is not None and self._minutes() >= budget.minutes:
            return "budget"
        return ""

    def _minutes(self) -> float:
        """How long the sweep has been at work, over its attempts."""
        sweep, seconds = self.scene.sweep, time.time() - self._began
        for number in sweep.attempts():
            outcome = sweep.outcome(number)
            if outcome is not None:
                seconds += outcome.ended - outcome.started
        return seconds / 60

    def publish(self) -> None:
        """Say how far the sweep is."""
        self._publish(read_records(self.scene.sweep))

    def _publish(self, records: list[TrialRecord]) -> None:
        done = sum(record.state.final for record in records)
        said = {"stage": "sweep", "done": done, "total": self._total, "unit": "trials", "rates": {}}
        if said != self._said:
            self._said = said
            write_json(self.scene.sweep.progress, said)

    def _leave_at_once(self, cause: str) -> None:
        """Without Ray there is nothing to save and nobody to talk to; the trials go on, and the next attempt follows them."""
        log.error("%s; leaving, the trials go on", cause)
        self.scene.sweep.event("ray_lost", cause=cause)
        assert self._ray is not None
        stop_ray(self._ray, self.scene.scratch)  # what its first process has left behind
        logging.shutdown()
        os._exit(EXIT_REQUEUE)
