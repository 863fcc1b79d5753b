"""Watchdog thread of a sweep: stop requests, budget, loss of Ray, and progress reports."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from ropewalk.cluster.engines.ray import stop_ray
from ropewalk.cluster.errors import EXIT_REQUEUE
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.orchestration.sweep.config import ORDER, SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_records
from ropewalk.jobs.orchestration.sweep.report.results import SweepReader

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class Watchdog:
    """Thread of the driver. Once `stop_reason` is set, every trial stops and Tune ends."""

    def __init__(self, context: SweepContext, stop_requested: Callable[[], bool], total: int) -> None:
        self.context, self._stop_requested, self._total = context, stop_requested, total
        self.stop_reason = ""  # preempted, cancelled, budget, failures
        self.num_failed = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-watch", daemon=True)
        self._ray: subprocess.Popen[bytes] | None = None
        self._began = time.time()
        self._reader = SweepReader(context.sweep)
        self._published: dict[str, Any] = {}

    def start(self, ray: subprocess.Popen[bytes] | None) -> None:
        """Start watching, including the sweep's own Ray process if there is one."""
        self._ray = ray
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if self._ray is not None and self._ray.poll() is not None:
                self._exit_for_requeue(f"Ray ended with {self._ray.returncode}")
            try:
                self._check()
            except OSError as error:  # the file system may be unavailable for a moment
                log.warning("cannot check the trials: %s", error)

    def _check(self) -> None:
        records = read_records(self.context.sweep)
        self.num_failed = sum(record.state is TrialState.FAILED for record in records)
        self._publish(records)
        if not self.stop_reason and (reason := self._reason(records)):
            log.info("all trials stop: %s", reason)
            self.context.sweep.event("sweep_ordered", order=reason)
            write_json(self.context.scratch / ORDER, {"order": reason})
            self.stop_reason = reason

    def _reason(self, records: list[TrialRecord]) -> str:
        sweep, budget = self.context.sweep, self.context.config.budget
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
        """Return the run time of the sweep over all its attempts."""
        sweep, seconds = self.context.sweep, time.time() - self._began
        for number in sweep.attempts():
            outcome = sweep.outcome(number)
            if outcome is not None and outcome.started:  # an attempt that never started has no start time
                seconds += outcome.ended - outcome.started
        return seconds / 60

    def publish(self) -> None:
        self._publish(read_records(self.context.sweep))

    def _publish(self, records: list[TrialRecord]) -> None:
        done = sum(record.state.final for record in records)
        progress = {"stage": "sweep", "done": done, "total": self._total, "unit": "trials", "rates": {}}
        if progress != self._published:
            self._published = progress
            write_json(self.context.sweep.progress, progress)

    def _exit_for_requeue(self, cause: str) -> None:
        """Exit to be requeued; without Ray there is nothing to save. Trials keep running, and the next attempt follows them."""
        log.error("%s; exiting, the trials keep running", cause)
        self.context.sweep.event("ray_lost", cause=cause)
        assert self._ray is not None
        stop_ray(self._ray, self.context.scratch)  # processes that its first process left behind
        logging.shutdown()
        os._exit(EXIT_REQUEUE)
