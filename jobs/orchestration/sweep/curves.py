"""One run of a trial as it grows: the values of the sweep's metric, the steps done, the time spent. Reads files only."""

import math
import time
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import read_new_lines
from ropewalk.jobs.runs.show.status import final_outcome


class MetricFollower:
    """Follows a run's metrics.jsonl: every call reads only what is new."""

    def __init__(self, run: RunDir, metric: str) -> None:
        self.run, self.metric = run, metric
        self.points: dict[int, float] = {}  # step → value; where a step was done again after a resume, the last time counts
        self.diverged = False  # the newest value was not a number
        self.outcome: Outcome | None = None  # how the run ended for good
        self.seconds = 0.0  # of all attempts, without the time in a queue
        self.stretches: list[list[int]] = []  # [first step, last step] of every stretch of ascending steps
        self._stride: int | None = None  # steps between two lines
        self._attempt: Any = None
        self._offset, self._last_line = 0, 0.0

    def read(self) -> list[tuple[int, float]]:
        """Read what was written since the last time; (step, value) of the lines that have the metric as a finite number."""
        lines, self._offset = read_new_lines(self.run.metrics, self._offset)
        # a line without a step is what a crash has left of it
        return [point for line in lines if "step" in line and (point := self._take(line)) is not None]

    def refresh(self) -> None:
        """Read what was written since the last time, and how the run ended and how long it took."""
        before = self._offset
        self.read()
        if self._offset > before or self.outcome is None:
            self.outcome = final_outcome(self.run)
            self.seconds = self._seconds()
            if self.outcome is not None and self.outcome.state is RunState.SUCCEEDED:
                self._take_result()

    def _take_result(self) -> None:
        """Take the metric from the job's results, where it is newer than the last line: a job may report it only there."""
        if (found := result_of(self.run, self.metric)) is not None and found[0] > max(self.points, default=0):
            self.points[found[0]] = found[1]

    def _take(self, line: dict[str, Any]) -> tuple[int, float] | None:
        step = int(line["step"])
        self._last_line = float(line.get("time", 0))
        self._count(step, line.get("attempt"))
        if self.metric not in line:
            return None
        value = line[self.metric]
        self.diverged = not isinstance(value, (int, float)) or not math.isfinite(value)
        if self.diverged:
            return None
        self.points.pop(step, None)  # the order is that of writing: the newest value comes last
        self.points[step] = float(value)
        return step, float(value)

    def _count(self, step: int, attempt: Any) -> None:
        """Extend the current stretch of steps, or begin another: an attempt or a group went back to a checkpoint."""
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
        """The step that the run has come to."""
        return self.stretches[-1][1] if self.stretches else 0

    @property
    def first(self) -> int:
        """The first step that it did: not 1 for a run that began with another one's checkpoint."""
        return max(1, self.stretches[0][0] - (self._stride or 1) + 1) if self.stretches else 1

    @property
    def steps_spent(self) -> int:
        """Steps done, those done again after a resume included."""
        stride = self._stride or 1
        return sum(last - max(0, first - stride) for first, last in self.stretches)

    def _seconds(self) -> float:
        total = 0.0
        for number in self.run.attempts():
            outcome = self.run.outcome(number)
            if outcome is not None:
                total += max(0.0, outcome.ended - outcome.started) if outcome.started else 0.0
            elif self._last_line:  # it still runs: what it has reported so far
                created = float(self.run.attempt_details(number).get("created", time.time()))
                total += max(0.0, self._last_line - created)
        return total


def result_of(run: RunDir, metric: str) -> tuple[int, float] | None:
    """The (step, value) of a metric in a job's results, if it is a finite number there; step 1 where they name none."""
    results = run.results()
    value, step = results.get(metric), results.get("step") or 1
    return (int(step), float(value)) if isinstance(value, (int, float)) and math.isfinite(value) else None


def joined(series: list[MetricFollower]) -> list[tuple[int, float]]:
    """The points of a trial over its runs: a run that began with a checkpoint replaces what lay after that step."""
    points: dict[int, float] = {}
    for one in series:
        points = {step: value for step, value in points.items() if step < one.first or not one.stretches}
        points.update(one.points)
    return sorted(points.items())
