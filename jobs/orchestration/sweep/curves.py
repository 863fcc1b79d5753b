"""Metric values, steps and time of a trial's run, read incrementally from its files."""

import math
import time
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import read_new_lines
from ropewalk.jobs.runs.show.status import final_outcome


class MetricFollower:
    """Follows a run's metrics.jsonl; every call reads only new lines."""

    def __init__(self, run: RunDir, metric: str) -> None:
        self.run, self.metric = run, metric
        self.points: dict[int, float] = {}  # step → value; of repeated steps the last value counts
        self.diverged = False  # the newest value was not a number
        self.outcome: Outcome | None = None  # final outcome of the run
        self.seconds = 0.0  # of all attempts, without queue time
        self.stretches: list[list[int]] = []  # [first step, last step] of every ascending sequence of steps
        self._stride: int | None = None  # steps per line
        self._attempt: Any = None
        self._offset, self._last_line = 0, 0.0

    def read(self) -> list[tuple[int, float]]:
        """Read new lines and return (step, value) of those with a finite value of the metric."""
        lines, self._offset = read_new_lines(self.run.metrics, self._offset)
        # a line without a step was cut by a crash
        return [point for line in lines if "step" in line and (point := self._add_line(line)) is not None]

    def refresh(self) -> None:
        """Read new lines, the run's outcome and its duration."""
        before = self._offset
        self.read()
        if self._offset > before or self.outcome is None:
            self.outcome = final_outcome(self.run)
            self.seconds = self._seconds()
            succeeded = self.outcome is not None and self.outcome.state is RunState.SUCCEEDED
            result = result_of(self.run, self.metric) if succeeded else None  # some jobs report the metric only there
            if result is not None and result[0] > max(self.points, default=0):
                self.points[result[0]] = result[1]

    def _add_line(self, line: dict[str, Any]) -> tuple[int, float] | None:
        step = int(line["step"])
        self._last_line = float(line.get("time", 0))
        self._count(step, line.get("attempt"))
        if self.metric not in line:
            return None
        value = line[self.metric]
        self.diverged = not isinstance(value, (int, float)) or not math.isfinite(value)
        if self.diverged:
            return None
        self.points.pop(step, None)  # keep the order of writing: the newest value is last
        self.points[step] = float(value)
        return step, float(value)

    def _count(self, step: int, attempt: Any) -> None:
        """Extend the current sequence of steps, or begin a new one after a return to a checkpoint."""
        last = self.stretches[-1] if self.stretches else None
        if last is None or step < last[1] or attempt != self._attempt:
            self.stretches.append([step, step])
        elif step > last[1]:
            stride = step - last[1]
            self._stride = stride if self._stride is None else min(self._stride, stride)
            last[1] = step
        self._attempt = attempt

    @property
    def step(self) -> int:
        return self.stretches[-1][1] if self.stretches else 0

    @property
    def first(self) -> int:
        """First step of the run, which is not 1 if it started from another run's checkpoint."""
        return max(1, self.stretches[0][0] - (self._stride or 1) + 1) if self.stretches else 1

    @property
    def steps_spent(self) -> int:
        """Steps done, including those repeated after a resume."""
        stride = self._stride or 1
        return sum(last - max(0, first - stride) for first, last in self.stretches)

    def _seconds(self) -> float:
        total = 0.0
        for number in self.run.attempts():
            outcome = self.run.outcome(number)
            if outcome is not None:
                total += max(0.0, outcome.ended - outcome.started) if outcome.started else 0.0
            elif self._last_line:  # still running: until its last line
                created = float(self.run.attempt_details(number).get("created", time.time()))
                total += max(0.0, self._last_line - created)
        return total


def result_of(run: RunDir, metric: str) -> tuple[int, float] | None:
    """Return (step, value) of a finite metric in a job's results, with step 1 if they have none."""
    results = run.results()
    value, step = results.get(metric), results.get("step") or 1
    return (int(step), float(value)) if isinstance(value, (int, float)) and math.isfinite(value) else None


def join_runs(series: list[MetricFollower]) -> list[tuple[int, float]]:
    """Join the points of a trial's runs; a run started from a checkpoint replaces the points after that step."""
    points: dict[int, float] = {}
    for run in series:
        points = {step: value for step, value in points.items() if step < run.first or not run.stretches}
        points.update(run.points)
    return sorted(points.items())
