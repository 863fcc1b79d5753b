"""Simulate a sweep on recorded curves under a virtual clock: the search and the scheduler of a real one, without Ray and runs."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.checks import decision_steps, sample_config
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.records import TrialState
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult
from ropewalk.jobs.orchestration.sweep.search.searches import Search, parameters_of
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import Curve, CurveTable
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE, ReportInterval, Trial

AT_ONCE = 4  # simulated trials at a time, unless the sweep sets max_concurrent


class TableTrial(Trial):
    """A trial that takes its values from a recorded curve. Between two reports it is paused; the next one resumes it."""

    def __init__(
        self,
        number: int,
        curve: Curve,
        every_steps: int | None,
        *,
        sampled: dict[str, Any],
        parameters: dict[str, Any],
        point: tuple[Any, ...],
    ) -> None:
        """`point`: the recorded configuration of the curve, the nearest to the parameters."""
        self.number, self.trial_id, self.curve = number, str(number), curve
        self.sampled, self.parameters, self.point = sampled, parameters, point
        self.state = TrialState.RUNNING
        self.reached = 0  # values of the curve so far
        interval = ReportInterval(every_steps)
        self._due = [k for k, step in enumerate(curve.steps[:-1]) if interval.due(step)] + [len(curve.steps) - 1]

    def next_report(self) -> dict[str, Any]:
        """Return the next value for the scheduler, or the last one with `done`; a diverged trial ends at once."""
        self.reached = next(k for k in self._due if k >= self.reached) + 1
        value = self.curve.values[self.reached - 1]
        done = self.reached == len(self.curve.steps) or not math.isfinite(value)
        return {"step": self.curve.steps[self.reached - 1], OBJECTIVE: value, "trial": self.number, "done": done}

    def leave(self) -> None:
        """End or pause the trial; nothing is left of a simulated one."""

    @property
    def cost_of_next(self) -> float:
        """Floating-point operations until the next report."""
        target = next(k for k in self._due if k >= self.reached)
        return (self.curve.steps[target] - self.step) * self.curve.flops / self.curve.steps[-1]

    @property
    def step(self) -> int:
        return self.curve.steps[self.reached - 1] if self.reached else 0

    def result(self, mode: str) -> TrialResult:
        """Return the trial as the reports read that of a real sweep."""
        curve = list(zip(self.curve.steps, self.curve.values, strict=True))[: self.reached]
        points = [(step, value) for step, value in curve if math.isfinite(value)]
        values = [value for _, value in points]
        best = min if mode == "min" else max
        return TrialResult(
            trial=self.number,
            parameters=self.parameters,
            sampled=self.sampled,
            state=self.state,
            stopped_at=self.step if self.state is TrialState.STOPPED else None,
            points=points,
            metric=values[-1] if values and len(values) == len(curve) else None,
            best_metric=best(values) if values else None,
            steps=self.step,
            steps_spent=self.step,
            steps_full=self.curve.steps[-1],
        )


class _Controller:
    """The part of Tune's controller that its schedulers ask: no trial waits for a slot."""

    def get_live_trials(self) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class Event:
    """A value that a simulated trial reported."""

    spent: float  # floating-point operations of all trials up to it
    trial: int
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class SimulatedSweep:
    """A simulated sweep: the trials as in the reports of a real one, and all values in the order of the virtual clock."""

    config: SweepConfig
    table: CurveTable
    trials: Sequence[TrialResult]
    points: Sequence[tuple[Any, ...]]  # the recorded configuration of each trial
    events: Sequence[Event]

    @property
    def results(self) -> SweepResults:
        """The trials as the reports take those of a real sweep."""
        record = {"job": "sweep", "config": self.config.model_dump(mode="json")}
        run = RunDir(Path("simulated"), record=record)
        config = self.config
        return SweepResults(run=run, metric=config.metric, mode=config.mode, wanted=config.num_trials, trials=self.trials)

    @cached_property
    def _sign(self) -> float:
        return 1.0 if self.config.mode == "min" else -1.0

    def incumbents(self) -> Iterator[tuple[float, int]]:
        """Yield (operations spent, best trial so far by its newest value) after each value."""
        newest: dict[int, float] = {}
        for event in self.events:
            newest[event.trial] = self._sign * event.value if math.isfinite(event.value) else math.inf
            yield event.spent, min(newest, key=lambda trial: newest[trial])

    def regret(self, budget: float) -> float:
        """Return how much worse than the table's best the best trial after `budget` operations is, by true final values."""
        best = min(self._sign * self.table.true_value(point) for point in self.table.curves)
        incumbent = None
        for spent, trial in self.incumbents():
            if spent > budget and incumbent is not None:
                break
            incumbent = trial
        assert incumbent is not None
        return self._sign * self.table.true_value(self.points[incumbent]) - best

    def cost_to_reach(self, value: float) -> float:
        """Return the operations until the best trial's true final value is at least as good; infinite if it never is."""
        for spent, trial in self.incumbents():
            if self._sign * self.table.true_value(self.points[trial]) <= self._sign * value:
                return spent
        return math.inf


def simulate(config: SweepConfig, table: CurveTable, *, seed: int, budget: float = math.inf) -> SimulatedSweep:
    """Simulate a sweep until all its trials have ended or `budget` operations are spent. Raises ConfigError."""
    table.check(config.space, config.base)
    config = config.model_copy(update={"seed": seed, "base": {**config.base, "steps": table.num_steps}})
    simulation = Simulation(config, table, seed)
    simulation.run(budget)
    trials = simulation.trials
    return SimulatedSweep(
        config=config,
        table=table,
        trials=[trial.result(config.mode) for trial in trials],
        points=[trial.point for trial in trials],
        events=simulation.events,
    )


class Simulation:
    """The state of a simulated sweep."""

    def __init__(self, config: SweepConfig, table: CurveTable, seed: int) -> None:
        from ropewalk.jobs.orchestration.sweep.trials.schedulers import make_scheduler

        self.config, self.table, sample = config, table, sample_config(config)
        self.search = Search(replace(config.search_plan, seed=seed))
        self.scheduler = make_scheduler(config, sample)
        self.every_steps = decision_steps(config, sample)
        self.trials: list[TableTrial] = []
        self.events: list[Event] = []
        self.spent = 0.0
        self._queue: list[tuple[float, int]] = []  # (virtual time of the next report, trial)

    def run(self, budget: float) -> None:
        now = 0.0
        while self.spent < budget:
            while len(self._queue) < (self.config.max_concurrent or AT_ONCE) and len(self.trials) < self.config.num_trials:
                if not self._start(now):
                    break
            if not self._queue:
                break
            now, number = heapq.heappop(self._queue)
            if self._advance(number):
                heapq.heappush(self._queue, (now + self.trials[number].cost_of_next, number))

    def _start(self, now: float) -> bool:
        number = len(self.trials)
        sampled = self.search.suggest(number)
        if sampled is None:
            return False
        parameters = parameters_of(self.config.space, sampled)
        point = self.table.nearest(parameters, self.config.base)
        curves = self.table.curves[point]
        trial = TableTrial(number, curves[min(curves)], self.every_steps, sampled=sampled, parameters=parameters, point=point)
        self.trials.append(trial)
        self.scheduler.on_trial_add(_Controller(), trial)
        heapq.heappush(self._queue, (now + trial.cost_of_next, number))
        return True

    def _advance(self, number: int) -> bool:
        """Take a trial's next report; return True if it continues."""
        trial = self.trials[number]
        self.spent += trial.cost_of_next
        report = trial.next_report()
        value, step = float(report[OBJECTIVE]), int(report["step"])
        self.events.append(Event(spent=self.spent, trial=number, step=step, value=value))
        finite = math.isfinite(value)
        if finite:
            self.search.report(number, step, value)
        if not report["done"] and self.scheduler.on_trial_result(_Controller(), trial, report) != "STOP":
            return True
        trial.state = TrialState.STOPPED
        if report["done"]:
            self.scheduler.on_trial_complete(_Controller(), trial, report)
            trial.state = TrialState.SUCCEEDED if finite else TrialState.FAILED
        trial.leave()
        self.search.finish(number, complete=trial.state is TrialState.SUCCEEDED, failed=not finite)
        return False
