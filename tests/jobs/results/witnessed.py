"""The time of a run by class, from what a witness on rank 0 and the planted faults have written down, beside what was counted.

Whatever else the machine does, the truth is what really happened, by the clock of those to whom it happened, never the planned
seconds. Each of rank 0's marks ends the time before it, so that no second is without a class:

queued       from the submission, or the end of the attempt before, until the attempt's first agent starts, as that writes down
starting     until rank 0 begins to load
loading      until it asks for its first batch
data, validating, saving   from the call until the next mark
training     from the arrival of a batch until the next mark, without what was slow
redone       the same, if a later group took the step again; and the step in which a fault fell, until the fault
slow         a planted sleep within a step; what another step took beyond the mean, if it is slow by the documented rule; and from
             when a rank is stopped and rank 0 is in its step, until the agents have recorded the hang
recovering   from when rank 0 is killed, or learns that another was, or that record, until the next group has its first batch
stopped      from the last report until the attempt's outcome

A class may be off by 1% of the run, without its time in queues. Where a fault falls into a step, the classes that meet there may
be off by one step more, the mean of this run: a slow step counts beyond the mean, a hang from the step's begin. Where rank 0
itself is killed they may be off by what its agent took to see that, which is printed: nobody else can tell when it was.
"""

import math
import statistics
from collections import defaultdict
from itertools import groupby, pairwise
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.phase_clock import LEAST_STEPS, RECENT_STEPS, SKIPPED_STEPS, SLOW_FACTOR, SLOW_SECONDS, TimeClass
from ropewalk.jobs.results.goodput import SILENT_SECONDS, goodput_of
from tests.fakes.timed import happened, marks

T = TimeClass
Change = tuple[float, TimeClass, int]  # from when on, class, step
ALLOWED_SHARE = 0.01  # of the run, without its time in queues
KINDS = {"load": T.LOADING, "data": T.DATA, "step": T.TRAINING, "validate": T.VALIDATING, "save": T.SAVING, "stop": T.STOPPED}
WITHIN_A_STEP = {"slow", "kill", "stop"}
MEET_THERE = {T.TRAINING, T.REDONE, T.SLOW, T.RECOVERING}


def fault(kind: str, step: int, seconds: float = 0.0, rank: int = 0) -> dict[str, Any]:
    return {"kind": kind, "step": step, "seconds": seconds, "rank": rank}


def check(run: RunDir, plan: list[dict[str, Any]]) -> None:
    outcome, counted = run.last_outcome(), goodput_of(run, trains=True).seconds
    assert outcome is not None
    wall, truth = outcome.ended - run.attempt_details(1)["created"], Truth(run)
    step = statistics.fmean(truth.step_seconds)
    print(f"\n{wall:.3f} s, counted {sum(counted.values()):.3f}: {[each['kind'] for each in plan]}")
    print(f"a step {step:.3f} s, the loss of rank 0 seen after {truth.unseen_seconds:.3f} s")
    print(f"{'class':<17}{'truth':>9}{'counted':>9}{'off':>9}")
    off = {name: counted.get(name, 0.0) - truth.seconds[name] for name in T}
    for name in (name for name in T if counted.get(name) or truth.seconds[name]):
        print(f"{name:<17}{truth.seconds[name]:9.3f}{counted.get(name, 0.0):9.3f}{off[name]:+9.3f}")
    assert len(truth.faults) == len([each for each in plan if each["kind"] != "leave"]), "all faults of the plan have happened"
    assert sum(counted.values()) == pytest.approx(wall, rel=1e-3)
    allowed = ALLOWED_SHARE * (wall - truth.seconds[T.QUEUED])
    more = max(step, truth.unseen_seconds) if WITHIN_A_STEP & {each["kind"] for each in plan} else 0.0
    assert not {n: o for n, o in off.items() if abs(o) > allowed + more * (n in MEET_THERE)}


class Truth:
    """The seconds of a run by class, group by group."""

    def __init__(self, run: RunDir) -> None:
        self.seconds, self.faults, self._run = defaultdict[TimeClass, float](float), happened(run.path), run
        self.step_seconds: list[float] = []  # without what was slow
        self.unseen_seconds = 0.0  # from the SIGKILL of rank 0 until an agent saw it
        self._steps: list[tuple[int, float]] = []  # step, and its seconds of training
        end, before = run.attempt_details(1)["created"], 0
        for (attempt, group), lines in groupby(marks(run.path), lambda mark: (mark["attempt"], mark["group"])):
            end = self._add_group(attempt, group, list(lines), end, is_first=attempt != before)
            before = attempt
        self.seconds[T.TRAINING] += sum(seconds for _, seconds in self._steps)

    def _add_group(self, attempt: int, group: int, lines: list[dict[str, Any]], begin: float, *, is_first: bool) -> float:
        """Add the time since the end of the group before, and return the end of this one."""
        changes = [(line["time"], KINDS[line["kind"]], line["step"]) for line in lines if line["kind"] != "lost"]
        first, step = next(((when, step) for when, name, step in changes if name is T.TRAINING), (math.inf, math.inf))
        if is_first and self._run.attempt_details(attempt)["opened_by"] != "retry":
            agents = [agent["started"] for agent in read_lines(self._run.attempt_dir(attempt) / "agents.jsonl")]
            changes = [(begin, T.QUEUED, 0), (min(agents), T.STARTING, 0), *changes]
        else:
            changes = [(begin, T.RECOVERING, 0), *(change for change in changes if change[0] >= first)]
        self._go_back(step)
        faults = [each for each in self.faults if (each["attempt"], each["group"]) == (attempt, group)]
        fatal = {each["kind"]: each["begin"] for each in faults if each["kind"] in ("kill", "stop")}
        if "kill" in fatal:
            end = next((line["time"] for line in lines if line["kind"] == "lost"), fatal["kill"])
            lost = next(
                e for e in self._run.read_events() if e["event"] == "rank_lost" and (e["attempt"], e["group"]) == (attempt, group)
            )
            self.unseen_seconds = lost["time"] - end
        elif changes[-1][1] is T.STOPPED and (outcome := self._run.outcome(attempt)) is not None:
            end = outcome.ended
        else:
            changes, end = self._hang(changes, attempt, group, fatal.get("stop"))
        steps = defaultdict[int, float](float)
        for (since, name, step), (until, _, _) in pairwise([*(change for change in changes if change[0] < end), (end, 0, 0)]):
            if name is T.TRAINING:
                steps[step] += until - since
            else:
                self.seconds[name] += until - since
        self._add_steps(steps, {each["step"]: each["end"] - each["begin"] for each in faults if each["kind"] == "slow"})
        return float(end)

    def _hang(self, changes: list[Change], attempt: int, group: int, stopped: float | None) -> tuple[list[Change], float]:
        """Return the changes of a group that hung, or whose node was silent until it counted as lost, and when it was ended."""
        events = [e for e in self._run.read_events() if (e.get("attempt"), e.get("group")) == (attempt, group)]
        event = next(e for e in events if e["event"] in ("ranks_hung", "node_silent"))
        if not any(name is T.DATA for _, name, _ in changes):  # lost before rank 0 counts, so nobody knows when it loaded
            changes = [change for change in changes if change[1] is not T.LOADING]
        in_step = max((when for when, name, _ in changes if name is T.TRAINING), default=changes[-1][0])
        since = max(stopped or event.get("since", event["time"] - SILENT_SECONDS), in_step)
        return [*(change for change in changes if change[0] <= since), (since, T.SLOW, 0)], event["time"]

    def _go_back(self, step: float) -> None:
        """Count the steps that a group takes again as redone."""
        self.seconds[T.REDONE] += sum(seconds for number, seconds in self._steps if number >= step)
        self._steps = [(number, seconds) for number, seconds in self._steps if number < step]

    def _add_steps(self, steps: dict[int, float], slept: dict[int, float]) -> None:
        normal: list[float] = []
        for step, seconds in steps.items():
            recent = normal[SKIPPED_STEPS:][-RECENT_STEPS:]
            mean = statistics.fmean(recent) if len(recent) >= LEAST_STEPS else seconds
            slow = slept.get(step) or (seconds - mean if seconds > max(SLOW_FACTOR * mean, mean + SLOW_SECONDS) else 0.0)
            self.seconds[T.SLOW] += slow
            normal.append(seconds - slow)
            self._steps.append((step, seconds - slow))
        self.step_seconds += normal
