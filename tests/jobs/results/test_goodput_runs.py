"""Goodput of real runs with planted faults, against what a witness on rank 0 measured."""

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.jobs.results.goodput import Goodput, goodput_of
from tests.cluster.conftest import ToyRun, toy  # noqa: F401 - a fixture
from tests.fakes.timed import PLAN, spans
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import events, pretrain_config
from tests.patience import slowness

NEAR_SECONDS = 0.05  # of a class, on quiet cores and beside a hundredth: what happens between the watched calls
BEFORE = (TimeClass.QUEUED, TimeClass.STARTING, TimeClass.LOADING)


def fault(kind: str, step: int, seconds: float = 0.0, rank: int = 0) -> dict[str, Any]:
    return {"kind": kind, "step": step, "seconds": seconds, "rank": rank}


WAITS = [fault("data", 7, 0.7), fault("data", 8, 0.6)]
PLANS = {
    "hindered": [*WAITS, fault("save", 10, 0.8), fault("validate", 20, 1.1), fault("slow", 26, 2.0, 1)],
    "a rank killed": [fault("data", 7, 0.5), fault("kill", 17, rank=1)],
    "rank 0 killed": [fault("save", 10, 0.5), fault("kill", 18)],
    "a rank stopped": [fault("validate", 20, 0.5), fault("stop", 24, rank=1)],
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_classes_equal_what_was_planted(
    toy: Callable[..., ToyRun],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    plan: list[dict[str, Any]],
) -> None:
    config = pretrain_config(make_dataset(tmp_path / "data"), steps=30, checkpoint={"every_steps": 10})
    config |= {"validation": {"every_steps": 20, "max_sequences": 4}, "resources": {"ranks_per_node": 2}}
    monkeypatch.setenv(PLAN, json.dumps(plan))
    started = toy("tests.fakes.timed:train", "ranks", **config)
    assert started.finish().state == "SUCCEEDED"
    check(started.run)


def check(run: RunDir) -> None:
    outcome = run.last_outcome()
    assert outcome is not None
    goodput, wall = goodput_of(run, trains=True), outcome.ended - run.attempt_details(1)["created"]
    assert sum(goodput.seconds.values()) == pytest.approx(wall, rel=1e-3)
    truth = measured(run)
    accounted = defaultdict(float, _merged(goodput))
    print({name: (round(accounted.get(name, 0.0), 3), round(seconds, 3)) for name, seconds in truth.items()})
    steps = [_length(line) for line in spans(run.path) if line["kind"] == "step"]
    assert abs(accounted["slow_or_hung"] - truth["slow_or_hung"]) <= 0.01 * truth["slow_or_hung"] + statistics.fmean(steps)
    for values in (truth, accounted):  # steps are slow for other reasons too, on a busy machine
        values["training"] += values.pop("slow_or_hung")
    near = NEAR_SECONDS * slowness()
    for name, seconds in truth.items():
        assert accounted.get(name, 0.0) == pytest.approx(seconds, rel=0.01, abs=near), name


def _merged(goodput: Goodput) -> dict[str, float]:
    """The classes before the first step as one: only the run itself knows where one begins."""
    seconds = {name.value: value for name, value in goodput.seconds.items() if name not in BEFORE}
    return {**seconds, "before": sum(goodput.seconds.get(name, 0.0) for name in BEFORE)}


def measured(run: RunDir) -> dict[str, float]:
    """The seconds by class as the witness saw them."""
    truth: dict[str, float] = defaultdict(float)
    lines = spans(run.path)
    groups = sorted({(line["attempt"], line["group"]) for line in lines})
    resumed = [int(event["step"]) for event in events(run, "resumed")]
    losses = sorted(json.loads(path.read_text()) for kind in ("kill", "stop") for path in run.path.glob(f"happened-{kind}-*"))
    slow = sum(planted["seconds"] for planted in json.loads(_plan()) if planted["kind"] == "slow")
    for number, group in enumerate(groups):
        mine = [line for line in lines if (line["attempt"], line["group"]) == group]
        resumed_at = resumed[number] if number < len(resumed) else 10**9
        steps = {line["begin"]: line for line in reversed(mine) if line["kind"] == "step"}
        begins = sorted(line["begin"] for line in mine if line["kind"] == "begin")
        for line in mine:
            if line["kind"] in ("data", "save", "validate"):
                truth[{"data": "waiting_for_data", "save": "saving", "validate": "validating"}[line["kind"]]] += _length(line)
        for line in steps.values():
            truth["training" if line["step"] <= resumed_at else "redone"] += _length(line)
        if number == 0:
            truth["before"] = begins[0] - run.attempt_details(1)["created"] - _length(_first_wait(mine))
        if number < len(losses):
            # when the agent noticed it; rank 0 may still begin a step after another rank is gone
            lost_events = [event["time"] for event in events(run, "rank_lost")]
            loss = max(losses[number] if events(run, "ranks_hung") else lost_events[0], begins[-1])
            hung = [event["time"] for event in events(run, "ranks_hung")]
            lost = hung[0] if hung else loss
            truth["slow_or_hung"] += lost - loss
            if begins[-1] not in steps:
                truth["redone"] += loss - begins[-1]
            following = [line for line in lines if (line["attempt"], line["group"]) == groups[number + 1]]
            truth["recovering"] += min(line["begin"] for line in following if line["kind"] == "begin") - lost
            truth["waiting_for_data"] -= _length(_first_wait(following))  # before the step that ends the recovery
    truth["slow_or_hung"] += slow
    truth["training"] -= slow
    return truth


def _first_wait(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in lines if line["kind"] == "data")


def _length(line: dict[str, Any]) -> float:
    return float(line["end"] - line["begin"])


def _plan() -> str:
    return os.environ.get(PLAN, "[]")
