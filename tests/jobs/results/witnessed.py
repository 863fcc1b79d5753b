"""The time of a run by class as a witness on rank 0 measured it, and the comparison with its goodput."""

import json
import os
import statistics
from collections import defaultdict
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.jobs.results.goodput import Goodput, goodput_of
from tests.fakes.timed import spans
from tests.jobs.launch import events
from tests.patience import SLOWEST, slowness

NEAR_SECONDS = 0.05  # of a class, on quiet cores and beside a hundredth: what happens between the watched calls
BEFORE = (TimeClass.QUEUED, TimeClass.STARTING, TimeClass.LOADING)


def fault(kind: str, step: int, seconds: float = 0.0, rank: int = 0) -> dict[str, Any]:
    return {"kind": kind, "step": step, "seconds": seconds, "rank": rank}


def check(run: RunDir, plan: list[dict[str, Any]]) -> None:
    outcome = run.last_outcome()
    assert outcome is not None
    goodput, wall = goodput_of(run, trains=True), outcome.ended - run.attempt_details(1)["created"]
    assert sum(goodput.seconds.values()) == pytest.approx(wall, rel=1e-3)
    truth, accounted = Truth(run, plan).seconds, defaultdict(float, _merged(goodput))
    print({name: (round(accounted[name], 3), round(seconds, 3)) for name, seconds in truth.items()})
    steps = [_length(line) for line in spans(run.path) if line["kind"] == "step"]
    # a slow step counts beyond the mean, and on a busy machine steps are slow for other reasons too, also those that are redone
    normal, planted = statistics.fmean(steps), truth["slow_or_hung"]
    assert accounted["slow_or_hung"] >= 0.99 * planted - normal
    # an agent leaves out of the seconds of a hang those in which it had no core, and those in which it recorded the stacks
    is_busy = not planted - NEAR_SECONDS <= accounted["slow_or_hung"] <= planted + normal or _slowness() > 2
    together = ("slow_or_hung", "redone") if is_busy else ("slow_or_hung",)
    for values in (truth, accounted):
        values["training"] += sum(values.pop(name, 0.0) for name in together)
    near = NEAR_SECONDS * _slowness()
    for name, seconds in truth.items():
        assert accounted[name] == pytest.approx(seconds, rel=0.01, abs=near), name


def _slowness() -> float:
    """Slowness of the machine in the last minute: the run was slow then, whoever computes now."""
    return max(slowness(), min(os.getloadavg()[0] / (os.cpu_count() or 1), SLOWEST))


def _merged(goodput: Goodput) -> dict[str, float]:
    """The classes before the first step as one: only the run itself knows where one begins."""
    seconds = {name.value: value for name, value in goodput.seconds.items() if name not in BEFORE}
    return {**seconds, "before": sum(goodput.seconds.get(name, 0.0) for name in BEFORE)}


class Truth:
    """The seconds of a run by class as the witness saw them, group by group."""

    def __init__(self, run: RunDir, plan: list[dict[str, Any]]) -> None:
        self._run, self.seconds = run, defaultdict[str, float](float)
        lines = spans(run.path)
        keys = sorted({(line["attempt"], line["group"]) for line in lines})
        groups = [[line for line in lines if (line["attempt"], line["group"]) == key] for key in keys]
        resumed = [int(event["step"]) for event in events(run, "resumed")]
        slow = sum(planted["seconds"] for planted in plan if planted["kind"] == "slow")
        self.seconds |= {"slow_or_hung": slow, "training": -slow}
        self._add_start(groups[0], run.attempt_details(1)["created"], "before")
        for number, group in enumerate(groups):
            self._add_spans(group, resumed[number] if number < len(resumed) else 10**9)
            if number + 1 < len(groups):
                self._add_change(group, groups[number + 1])
        ended = run.last_outcome()
        assert ended is not None
        self.seconds["stopped"] += ended.ended - max(line["end"] for line in lines)

    def _add_spans(self, group: list[dict[str, Any]], resumed_at: int) -> None:
        names = {"data": "waiting_for_data", "save": "saving", "validate": "validating"}
        for line in group:
            if line["kind"] in names:
                self.seconds[names[line["kind"]]] += _length(line)
        for line in {line["begin"]: line for line in reversed(group) if line["kind"] == "step"}.values():
            self.seconds["training" if line["step"] <= resumed_at else "redone"] += _length(line)

    def _add_start(self, group: list[dict[str, Any]], since: float, name: str) -> None:
        lines = [line for line in group if line["kind"] == "begin"] or group  # or all steps were done
        begin = min(line["begin"] for line in lines)
        wait = next((_length(line) for line in group if line["kind"] == "data"), 0.0)
        self.seconds[name] += begin - since
        self.seconds["before" if name == "before" else "waiting_for_data"] -= wait  # a recovery lasts until the first step

    def _add_change(self, group: list[dict[str, Any]], following: list[dict[str, Any]]) -> None:
        """Add the time between two groups of the run: after an announced stop, or a loss."""
        attempt = group[0]["attempt"]
        if attempt != following[0]["attempt"]:
            outcome = self._run.outcome(attempt)
            assert outcome is not None
            self.seconds["stopped"] += outcome.ended - max(line["end"] for line in group)
            opened_by = self._run.attempt_details(following[0]["attempt"])["opened_by"]
            self._add_start(following, outcome.ended, "recovering" if opened_by == "retry" else "before")
            return
        last_begin = max(line["begin"] for line in group if line["kind"] == "begin")
        hung = [event for event in events(self._run, "ranks_hung") if event["group"] == group[0]["group"]]
        if hung:
            loss = max(json.loads(next(self._run.path.glob("happened-stop-*")).read_text()), last_begin)
        else:  # when the agent noticed it; rank 0 may still begin a step, or end, after another rank is gone
            noticed = [event["time"] for event in events(self._run, "rank_lost") if event["group"] == group[0]["group"]]
            loss = max(noticed[0], last_begin)
        lost = hung[0]["time"] if hung else loss
        self.seconds["slow_or_hung"] += lost - loss
        if last_begin not in {line["begin"] for line in group if line["kind"] == "step"}:
            self.seconds["redone"] += loss - last_begin
        self._add_start(following, lost, "recovering")


def _length(line: dict[str, Any]) -> float:
    return float(line["end"] - line["begin"])
