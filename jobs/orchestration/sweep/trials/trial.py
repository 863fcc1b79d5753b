"""A trial inside Ray Tune's actor: starts or adopts the trial's run, reports its metric, ends it."""

import logging
import math
import os
import time
from collections import deque
from typing import Any

from ropewalk.cluster.errors import AlreadyRunningError, BackendError
from ropewalk.cluster.gpus import DEVICES_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.config import SweepContext
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower, result_of
from ropewalk.jobs.orchestration.sweep.records import WITH_THE_SWEEP, TrialRecord, TrialState, read_record, write_record
from ropewalk.jobs.orchestration.sweep.trials.allocation import TrialSupervisor
from ropewalk.jobs.orchestration.sweep.trials.checkpoint_reference import checkpoint_of
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE, ReportInterval, Trial
from ropewalk.jobs.orchestration.sweep.trials.trial_runs import await_end, create_run, end_run
from ropewalk.jobs.results.metrics import OWN_KEYS, latest_metrics
from ropewalk.jobs.runs.show.follow import LOST_ANSWERS, Watch
from ropewalk.jobs.runs.show.status import GONE, final_outcome, states
from ropewalk.jobs.runs.submit.launcher import ask

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
ASK_AGAIN_SECONDS = 1.0
MAX_RESTARTS = 3  # of a run whose process is gone
FINISHED = "trial_finished"  # event
PAUSED = "paused_by_sweep"  # event of the run: its attempt exits only for now


class TrialFollower(Trial):
    """Follows one trial, continuing from its record."""

    def __init__(self, context: SweepContext, number: int) -> None:
        self.context, self.number = context, number
        self.record = self._read_record()
        self.run: RunDir | None = None
        self._watch: Watch | None = None
        self._restarts = 0
        self._supervisor: TrialSupervisor | None = None  # only in the sweep's allocation
        self._queue: deque[tuple[int, float]] = deque()
        self._last_step = 0  # earlier steps are not reported again
        self._held: tuple[int, float] | None = None  # read but not yet reported
        self._reported: tuple[int, float] | None = None
        self._metric: MetricFollower | None = None
        self._interval = ReportInterval(context.every_steps)

    # --- interface to Tune

    def next_report(self) -> dict[str, Any]:
        """Return the next value for the scheduler, or the last one with `done`; blocks until there is one."""
        if self.context.stop_reason():
            return self._stop()
        if self.record.state.final and self.run is None:
            if self.record.runs:
                self._open(self.context.run(self.record.runs[-1]))
        elif self.run is None:
            self._start_or_adopt()
        while True:
            over = self._is_over()  # checked before reading, so that the last lines are included
            self._read()
            while self._queue:
                step, value = self._queue.popleft()
                self._held = (step, value)
                if self._interval.due(step) and not self._is_last(step):
                    return self._report()
            if over and not self._revive():
                return self._end()
            if self.context.stop_reason():
                return self._stop()
            time.sleep(POLL_SECONDS)

    def _stop(self) -> dict[str, Any]:
        """Report a stop of all trials; a run in the sweep's own allocation exits first."""
        if self.context.config.allocation:
            self.leave()
        return self._report(done=True)

    def _report(self, *, done: bool = False) -> dict[str, Any]:
        self._reported = self._held or self._reported
        step, value = self._reported or (0, math.nan)
        return {"step": step, OBJECTIVE: value, "trial": self.number, "done": done}

    def _is_last(self, step: int) -> bool:
        """Return True for the run's last step: the trial is reported as finished rather than stopped just before its end."""
        return self.context.total_steps is not None and step >= self.context.total_steps

    def leave(self) -> None:
        """Let the run save and exit as Tune releases the trial, unless the sweep is preempted and a later attempt follows it."""
        run = self.run
        if run is None or (self.context.stop_reason() == "preempted" and not self.context.config.allocation):
            return
        if final_outcome(run) is None:
            self.record = self._read_record()
            if self.record.state is TrialState.RUNNING:  # no other decision was made: it is resumed later
                self.record.state = TrialState.PAUSED
                write_record(self.context.sweep, self.record)
                if run.attempts() and not run.cancel_requested:
                    run.event(PAUSED, attempt=run.attempts()[-1])
            end_run(self.context, run)
            if self._supervisor is not None:
                self._supervisor.join()
        self.run = None

    def reference(self) -> dict[str, Any]:
        """Return run and step of a complete checkpoint from which another trial can continue."""
        if self.run is None or self._reported is None or self.context.config.scheduler != "pbt":
            return {}
        return checkpoint_of(self.context.sweep, self.run, self._reported[0], self._is_over)

    # --- the run

    def _read_record(self) -> TrialRecord:
        record = read_record(self.context.sweep, self.number)
        assert record is not None, f"trial {self.number} has no record"
        return record

    def _save(self) -> None:
        Fence(self.context.sweep, self.context.attempt, 0).check()  # orphans of a killed driver must not act
        write_record(self.context.sweep, self.record)

    def _open(self, run: RunDir) -> None:
        self.run, self._watch = run, Watch(run)
        self._last_step = self.record.starting_step(len(self.record.runs) - 1)
        self._metric = MetricFollower(run, self.context.config.metric)
        self._interval = ReportInterval(self.context.every_steps, self._last_step)

    def _start_or_adopt(self) -> None:
        context, record = self.context, self.record
        if record.waits_for_run:
            if record.runs:  # an exploit step decided by a killed driver
                end_run(context, context.run(record.runs[-1]))
            run = create_run(context, record)
            record.runs.append(run.id)
        else:
            run = context.run(record.runs[-1])
        previous_state, record.state = record.state, TrialState.RUNNING
        self._save()
        self._open(run)
        self._ensure_running(run, paused=previous_state is TrialState.PAUSED)

    def _ensure_running(self, run: RunDir, *, paused: bool) -> None:
        """Start the run, or resume it if its process is gone; do nothing if it has ended."""
        if not run.attempts():
            self._event("trial_started", run)
            self._ask("submit", run)
            return
        outcome = final_outcome(run)
        if outcome is not None:
            if paused and outcome.state is RunState.CANCELLED:
                self._resume(run)
            return
        for _ in range(0 if self.context.config.allocation else LOST_ANSWERS):
            state = states([run])[run.id]
            if state.word in GONE:
                break
            if state.state is not RunState.UNKNOWN:
                self._event("trial_adopted", run)
                return
            time.sleep(ASK_AGAIN_SECONDS)
        self._resume(run)

    def _resume(self, run: RunDir) -> None:
        self._event("trial_resumed", run)
        self._ask("resume", run)

    def _ask(self, verb: str, run: RunDir) -> None:
        if self.context.config.allocation:
            self._supervisor = TrialSupervisor(run, self.context.stop_reason)
            self._supervisor.start()
            return
        try:
            # Ray assigned GPUs to this actor if local trials need them
            ask(self.context.launcher, verb, run, os.environ.get(DEVICES_VARIABLE, "") if self.context.gpus else "")
        except AlreadyRunningError:
            log.info("%s is already active", run.id)
        except BackendError as error:
            run.event("submit_failed", error=str(error))
            raise

    def _event(self, kind: str, run: RunDir, **more: Any) -> None:
        self.context.sweep.event(kind, trial=self.number, run=run.id, parameters=self.record.parameters, **more)

    def _is_over(self) -> bool:
        """Return True if the trial's run has ended or is lost, without changing anything."""
        if self.run is None or self._watch is None or self.record.state.final:
            return True
        return self._watch.over() or (self._supervisor is not None and not self._supervisor.is_alive())

    def _revive(self) -> bool:
        """Resume the run of an open trial whose process was lost or which another actor had paused."""
        run = self.run
        if run is None or self._watch is None or self.record.state.final:
            return False
        outcome = final_outcome(run)
        if outcome is None:
            if self._restarts == MAX_RESTARTS:
                return False
            self._restarts += 1
            log.warning("trial %d: the process of %s is gone (%s); resuming it", self.number, run.id, self._watch.abandoned)
        elif not self._paused_by_another(run, outcome):
            return False
        else:
            await_end(run)
            self.record.state = TrialState.RUNNING
            self._save()
        self._watch = Watch(run)
        self._resume(run)
        return True

    def _paused_by_another(self, run: RunDir, outcome: Outcome) -> bool:
        """Return True if another actor paused the run while Tune moved the trial to this actor."""
        last = run.attempts()[-1]
        paused = any(event["event"] == PAUSED and event["attempt"] == last for event in run.read_events(afresh=True))
        if outcome.state is not RunState.CANCELLED or not paused:
            return False
        self.record = self._read_record()
        return not (self.record.state.final or self.context.sweep.cancel_requested or self.context.stop_reason())

    def _read(self) -> None:
        if self._metric is None:
            return
        limit = self.record.stopped_at if self.record.state is TrialState.STOPPED else None
        for step, value in self._metric.read():
            if step > self._last_step and (limit is None or step <= limit):
                self._last_step = step
                self._queue.append((step, value))

    # --- the end

    def _end(self) -> dict[str, Any]:
        """Record and report the trial's outcome after the end of its run."""
        self.record = record = self._read_record()
        if not record.state.final:
            state, cause = self._final_state()
            # `ropewalk cancel SWEEP` cancels trials too, which may exit before the driver notices
            with_sweep = state is TrialState.CANCELLED and self.context.sweep.cancel_requested
            record.end(state, WITH_THE_SWEEP if with_sweep else cause, with_sweep=with_sweep)
            self._save()
            self._write_end_event()
        elif record.state in {TrialState.SUCCEEDED, TrialState.FAILED} and not self._has_end_event():
            self._write_end_event()  # killed between writing the record and the event
        return self._report(done=True)

    def _write_end_event(self) -> None:
        record, step = self.record, (self._held or (0,))[0]
        self._event(FINISHED, self.run or RunDir("."), state=record.state, cause=record.cause, step=step)

    def _has_end_event(self) -> bool:
        events = self.context.sweep.read_events(afresh=True)
        return any(event["event"] == FINISHED and event["trial"] == self.number for event in events)

    def _final_state(self) -> tuple[TrialState, str]:
        assert self.run is not None
        outcome = final_outcome(self.run)
        if outcome is None:
            return (
                TrialState.FAILED,
                f"its process was lost {MAX_RESTARTS + 1} times: {self._watch.abandoned if self._watch else ''}",
            )
        if outcome.state is not RunState.SUCCEEDED:
            return TrialState(outcome.state.value), outcome.cause
        self._hold_result(self.run)
        if self._held is None and self._reported is None:
            names = sorted(latest_metrics(self.run).keys() - OWN_KEYS)
            names += [key for key, value in self.run.results().items() if isinstance(value, float)]
            reported = ", ".join(names) or "nothing"
            return TrialState.FAILED, f"it never reported {self.context.config.metric}; it reported {reported}"
        return TrialState.SUCCEEDED, ""

    def _hold_result(self, run: RunDir) -> None:
        """Use the metric of the job's results if it is newer than the last line; some jobs report it only there."""
        result, newest = result_of(run, self.context.config.metric), self._held or self._reported
        if result is not None and (newest is None or result[0] > newest[0]):
            self._held = result
