"""One trial as Ray Tune's actor holds it: starts or adopts its run, follows what that reports, ends it."""

import logging
import math
import os
import time
from collections import deque
from typing import Any

from cluster.errors import AlreadyRunningError, BackendError
from cluster.gpus import DEVICES_VARIABLE
from cluster.run.directory import RunDir
from cluster.run.fence import Fence
from cluster.spec import Outcome, RunState
from jobs.runs.follow import LOST_ANSWERS, Watch
from jobs.runs.status import GONE, final_outcome, states
from jobs.sweep.allocation import Carrier
from jobs.sweep.checkpoint_reference import checkpoint_of
from jobs.sweep.context import Scene
from jobs.sweep.follower import Pace, Readings
from jobs.sweep.launcher import ask
from jobs.sweep.records import WITH_THE_SWEEP, TrialRecord, TrialState, read_record, write_record
from jobs.sweep.stop import await_end, end_run
from jobs.sweep.trial_runs import create_run

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
ASK_AGAIN_SECONDS = 1.0
RESTARTS = 3  # of a run whose carrier dies
FINISHED = "trial_finished"  # the event
PAUSED = "paused_by_sweep"  # an event of the run: its attempt was told to leave only for now
OBJECTIVE = "objective"  # the metric's name towards Ray Tune
RUNG = "rung"  # steps in units of those after which the scheduler decides: Tune's HyperBand begins its budgets at 1


class Trial:
    """Trial K from wherever its record says it stands."""

    def __init__(self, scene: Scene, number: int) -> None:
        self.scene, self.number = scene, number
        found = read_record(scene.sweep, number)
        assert found is not None, f"trial {number} has no record"
        self.record: TrialRecord = found
        self.run: RunDir | None = None
        self._watch: Watch | None = None
        self._restarts = 0
        self._carrier: Carrier | None = None  # in the sweep's allocation
        self._queue: deque[tuple[int, float]] = deque()
        self._held: tuple[int, float] | None = None  # read, and not reported (yet)
        self._reported: tuple[int, float] | None = None
        self._readings: Readings | None = None
        self._pace = Pace(scene.every_steps)

    # --- towards Tune

    def next_report(self) -> dict[str, Any]:
        """The next reading that the scheduler wants, or the last one with `done`. Blocks until there is one."""
        if self.scene.order():
            return self._obey()
        if self.record.state.final and self.run is None:
            self._follow_recorded()
        elif self.run is None:
            self._start_or_adopt()
        while True:
            over = self._over()  # before the lines are read, so that the last ones are seen
            self._read()
            while self._queue:
                step, value = self._queue.popleft()
                self._held = (step, value)
                if self._pace.due(step) and not self._is_last(step):
                    return self._report()
            if over:
                return self._end()
            if self.scene.order():
                return self._obey()
            time.sleep(POLL_SECONDS)

    def _obey(self) -> dict[str, Any]:
        """All trials are told to leave. What runs in the sweep's own allocation has left before Tune hears of it."""
        if self.scene.config.allocation:
            self.leave()
        return self._report(done=True)

    def _report(self, *, done: bool = False) -> dict[str, Any]:
        self._reported = self._held or self._reported
        step, value = self._reported or (0, math.nan)
        rung = step / (self.scene.every_steps or 1)
        return {"step": step, RUNG: rung, OBJECTIVE: value, "trial": self.number, "done": done}

    def _is_last(self, step: int) -> bool:
        """The run is about to end by itself: it is reported as finished, not stopped a moment before."""
        return self.scene.total_steps is not None and step >= self.scene.total_steps

    def leave(self) -> None:
        """Tune is done with the trial, for now or for good: its run saves and leaves, unless a later attempt follows it again."""
        run = self.run
        if run is None or (self.scene.order() == "preempted" and not self.scene.config.allocation):
            return
        if not self._ended(run):
            record = self._reread()
            if record.state is TrialState.RUNNING:  # nobody has said more: it goes on later
                record.state = TrialState.PAUSED
                write_record(self.scene.sweep, record)
                if run.attempts() and not run.cancel_requested:
                    run.event(PAUSED, attempt=run.attempts()[-1])
            end_run(self.scene, run)
            if self._carrier is not None:
                self._carrier.join()
        self.run = None

    def reference(self) -> dict[str, Any]:
        """What another trial needs to go on from here: the run, and the step of a complete checkpoint of it."""
        if self.run is None or self._reported is None or self.scene.config.scheduler != "pbt":
            return {}
        return checkpoint_of(self.scene.sweep, self.run, self._reported[0], self._over)

    # --- its run

    def _reread(self) -> TrialRecord:
        found = read_record(self.scene.sweep, self.number)
        assert found is not None
        self.record = found
        return found

    def _save(self) -> None:
        Fence(self.scene.sweep, self.scene.attempt, 0).check()  # a driver that was killed must not act through its orphans
        write_record(self.scene.sweep, self.record)

    def _open(self, run: RunDir) -> None:
        self.run = run
        after = self.record.starting_step(len(self.record.runs) - 1)
        self._readings = Readings(run, self.scene.config.metric, after)
        self._pace = Pace(self.scene.every_steps, after)
        self._watch = Watch(run)

    def _follow_recorded(self) -> None:
        if self.record.runs:
            self._open(RunDir(self.scene.sweep.path.parent / self.record.runs[-1]))

    def _start_or_adopt(self) -> None:
        scene, record = self.scene, self.record
        if record.waits_for_run:
            if record.runs:  # an exploit that a killed driver had decided on
                end_run(scene, RunDir(scene.sweep.path.parent / record.runs[-1]))
            run = create_run(scene.sweep, scene.config, record, scene.cluster, scene.origin)
            record.runs.append(run.id)
        else:
            run = RunDir(scene.sweep.path.parent / record.runs[-1])
        was, record.state = record.state, TrialState.RUNNING
        self._save()
        self._open(run)
        self._carry(run, paused=was is TrialState.PAUSED)

    def _carry(self, run: RunDir, *, paused: bool) -> None:
        """See that somebody carries the run, unless it is over."""
        if not run.attempts():
            self._event("trial_started", run)
            self._ask("submit", run)
            return
        outcome = final_outcome(run)
        if outcome is not None:
            if paused and outcome.state is RunState.CANCELLED:
                self._event("trial_resumed", run)
                self._ask("resume", run)
            return
        for _ in range(0 if self.scene.config.allocation else LOST_ANSWERS):
            state = states([run])[run.id]
            if state.word in GONE:
                break
            if state.state is not RunState.UNKNOWN:
                self._event("trial_adopted", run)
                return
            time.sleep(ASK_AGAIN_SECONDS)
        self._event("trial_resumed", run)
        self._ask("resume", run)

    def _ask(self, verb: str, run: RunDir) -> None:
        if self.scene.config.allocation:
            self._carrier = Carrier(run, self.scene.order)
            self._carrier.start()
            return
        try:
            # Ray has given this actor GPUs of its own, where trials on this machine need some
            ask(self.scene.launcher, verb, run, os.environ.get(DEVICES_VARIABLE, "") if self.scene.gpus else "")
        except AlreadyRunningError:
            log.info("%s is under way already", run.id)
        except BackendError as error:
            run.event("submit_failed", error=str(error))
            raise

    def _event(self, kind: str, run: RunDir, **more: Any) -> None:
        self.scene.sweep.event(kind, trial=self.number, run=run.id, parameters=self.record.parameters, **more)

    # --- its end

    def _ended(self, run: RunDir) -> bool:
        return final_outcome(run) is not None

    def _over(self) -> bool:
        if self.run is None or self._watch is None or self.record.state.final:
            return True
        if not self._watch.over() and (self._carrier is None or self._carrier.is_alive()):
            return False
        if self._ended(self.run):
            return not self._goes_on(self.run)
        self._restarts += 1
        if self._restarts > RESTARTS:
            return True
        log.warning("trial %d: nobody carries %s (%s); going on with it", self.number, self.run.id, self._watch.abandoned)
        self._watch = Watch(self.run)
        self._event("trial_resumed", self.run)
        self._ask("resume", self.run)
        return False

    def _goes_on(self, run: RunDir) -> bool:
        """Tune gave the trial to this actor while another, which had held it, made its run save and leave: it goes on here."""
        outcome, last = final_outcome(run), run.attempts()[-1]
        paused = any(event["event"] == PAUSED and event["attempt"] == last for event in run.read_events(afresh=True))
        if outcome is None or outcome.state is not RunState.CANCELLED or not paused:
            return False
        if self._reread().state.final or self.scene.sweep.cancel_requested or self.scene.order():
            return False
        await_end(run)
        self.record.state = TrialState.RUNNING
        self._save()
        self._watch = Watch(run)
        self._event("trial_resumed", run)
        self._ask("resume", run)
        return True

    def _read(self) -> None:
        if self._readings is None:
            return
        limit = self.record.stopped_at if self.record.state is TrialState.STOPPED else None
        self._queue.extend((step, value) for step, value in self._readings.news() if limit is None or step <= limit)

    def _end(self) -> dict[str, Any]:
        """The run is over: what became of the trial is written down and reported."""
        record = self._reread()
        if not record.state.final:
            state, cause = self._verdict()
            # `ropewalk cancel SWEEP` ends trials too, which may have left before the driver hears of it
            with_sweep = state is TrialState.CANCELLED and self.scene.sweep.cancel_requested
            record.end(state, WITH_THE_SWEEP if with_sweep else cause, with_sweep=with_sweep)
            self._save()
            self._tell_end()
        elif record.state in {TrialState.SUCCEEDED, TrialState.FAILED} and not self._end_is_told():
            self._tell_end()  # a kill came between the record and its event
        return self._report(done=True)

    def _tell_end(self) -> None:
        record, step = self.record, (self._held or (0,))[0]
        self._event(FINISHED, self.run or RunDir("."), state=record.state, cause=record.cause, step=step)

    def _end_is_told(self) -> bool:
        events = self.scene.sweep.read_events(afresh=True)
        return any(event["event"] == FINISHED and event["trial"] == self.number for event in events)

    def _verdict(self) -> tuple[TrialState, str]:
        assert self.run is not None
        outcome = final_outcome(self.run)
        if outcome is None:
            return TrialState.FAILED, f"nobody carried it, {RESTARTS} times: {self._watch.abandoned if self._watch else ''}"
        if outcome.state is RunState.CANCELLED:
            return TrialState.CANCELLED, outcome.cause
        if outcome.state is RunState.FAILED:
            return TrialState.FAILED, outcome.cause
        self._hold_result(self.run, outcome)
        if self._held is None and self._reported is None:
            names = sorted((self._readings.names if self._readings else set()) - {"step", "attempt", "time"})
            known = ", ".join([*names, *(k for k, v in self.run.results().items() if isinstance(v, float))]) or "nothing"
            return TrialState.FAILED, f"it never reported {self.scene.config.metric}; it reported {known}"
        return TrialState.SUCCEEDED, ""

    def _hold_result(self, run: RunDir, outcome: Outcome) -> None:
        """A job may report the metric only in its results."""
        results = run.results()
        value, step = results.get(self.scene.config.metric), results.get("step") or 1
        newest = self._held or self._reported
        if isinstance(value, (int, float)) and math.isfinite(value) and (newest is None or int(step) > newest[0]):
            self._held = (int(step), float(value))
