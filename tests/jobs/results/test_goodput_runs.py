"""Goodput of 30 disturbed runs against the truth (see witnessed.py): 22 here, 4 each in tests/slurm and tests/k8s."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.files import read_lines
from tests.cluster.conftest import ToyRun, toy  # noqa: F401 - a fixture
from tests.fakes.timed import PLAN
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import pretrain_config
from tests.jobs.results.witnessed import check, fault

WAITS = [fault("data", 7, 0.7), fault("data", 8, 0.6)]
PLANS = {
    "hindered, and rank 0 killed": [
        *(*WAITS, fault("save", 10, 0.8), fault("kill", 18)),
        *(fault("validate", 20, 1.1), fault("slow", 26, 2.0, 1)),
    ],
    "a rank killed": [fault("data", 7, 0.5), fault("kill", 17, rank=1)],
    "a rank stopped": [fault("validate", 20, 0.5), fault("stop", 24, rank=1)],
    "an announced stop": [fault("save", 10, 0.5), fault("leave", 14)],
}


def random_plan(seed: int) -> list[dict[str, Any]]:
    """Hindrances after some even steps, and one loss or stop in an even step, so that no two meet."""
    chance = random.Random(seed)
    hindrances = [
        *(fault("data", step, chance.uniform(0.1, 1.0)) for step in chance.sample(range(4, 29, 2), 3)),
        fault("save", chance.choice([10, 20]), chance.uniform(0.2, 1.5)),
        fault("validate", 20, chance.uniform(0.2, 1.5)),
    ]
    last = fault(chance.choice(["kill", "stop", "leave"]), chance.randrange(12, 29, 2), rank=1)
    return [*hindrances, {**last, "rank": chance.randint(0, 1) if last["kind"] == "kill" else 1}]


PLANS |= {f"seed {seed}": random_plan(seed) for seed in range(18)}


@pytest.mark.soak("22 runs; make test has all classes in test_goodput.py")
@pytest.mark.parametrize("plan", [pytest.param(plan, id=name) for name, plan in PLANS.items()])
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
    if any(planted["kind"] == "leave" for planted in plan):  # what a scheduler sends before it takes the nodes away
        started.reach(plan[-1]["step"])
        os.kill(read_lines(started.run.attempt_dir(1) / "agents.jsonl")[-1]["pid"], signal.SIGUSR2)
    assert started.finish().state == "SUCCEEDED"
    check(started.run, plan)
