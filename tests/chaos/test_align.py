"""Preferences learnt through many kills, and a sweep over beta whose trials are preempted: the parameters do not show it."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.orchestration.sweep.records import TrialState
from tests.jobs.launch import equal, events, launch, log_of, losses, start, weights
from tests.jobs.sweeping import Swept, sweeps
from tests.jobs.training.align.pairs import align_config, align_run, make_model, pairs, write_pairs
from tests.patience import Patience, until

LORA = {"lora": {"rank": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl.zst", pairs(50))


@pytest.mark.soak("minutes; make test runs test_killed_and_resumed_is_bit_identical")
@pytest.mark.parametrize(
    "keys",
    [{**LORA, "reference": "precomputed"}, {"method": "kto"}, {"method": "reward"}],
    ids=["dpo with lora", "kto", "reward model"],
)
def test_kills_at_random_steps_leave_no_trace(keys: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    """17 kills each, 51 in all: of both ranks at once, in the middle of epochs of six steps."""
    chance, kills = random.Random(str(keys)), 17
    config = align_config(model, data, steps=90, checkpoint={"every_steps": 2, "keep": 2}, **keys)
    whole, killed = (align_run(tmp_path, config) for _ in range(2))
    launch(whole, 2)
    for number in range(kills):
        group = start(killed, 2)
        goal = min(88, max(losses(killed), default=0) + chance.randrange(1, 6)) if number % 6 else 0
        group.until(lambda goal=goal: goal == 0 or max(losses(killed), default=0) >= goal)  # type: ignore[misc]
        group.kill()
    launch(killed, 2)
    assert len(killed.attempts()) == kills + 1
    assert equal(weights(whole), weights(killed)), log_of(killed)
    assert losses(whole) == losses(killed)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Swept]]:
    with sweeps(tmp_path) as begin:
        yield begin


@pytest.mark.soak("a Ray, two trials of two ranks; make test runs preemption and resume by themselves")
def test_a_sweep_over_beta_whose_trials_are_preempted(
    sweep: Callable[..., Swept], model: Path, data: Path, tmp_path: Path
) -> None:
    base = align_config(model, data, steps=150, checkpoint={"every_steps": 1000}, resources={"ranks_per_node": 2}, **LORA)
    base["validation"] = {"every_steps": 50, "max_sequences": 9, "patience": None}
    space = {"beta": {"choice": [0.05, 0.5]}}
    swept = sweep(
        job="align", base=base, space=space, metric="validation/reward_accuracy", mode="max", trials=2, max_concurrent=1
    )
    for number in range(2):
        until(lambda number=number: len(swept.runs()) > number, Patience.START, swept.said)  # type: ignore[misc]
        trial = swept.runs()[number]
        until(lambda trial=trial: max(losses(trial), default=0) >= 20, describe=swept.said)  # type: ignore[misc]
        os.kill(int((read_json(trial.path / "supervisor.json") or {})["pid"]), signal.SIGUSR2)
        until(lambda trial=trial: bool(events(trial, "resumed")), describe=swept.said)  # type: ignore[misc]
    assert swept.finish(patience=Patience.CLUSTER)["trials"] == {"SUCCEEDED": 2}
    assert {record.state for record in swept.records()} == {TrialState.SUCCEEDED}
    for trial in swept.runs():
        alone = RunDir.create("alone", {**trial.record, "config": trial.record["config"]}, tmp_path / "alone")
        launch(alone, 2)
        assert equal(weights(alone), weights(trial)), "the trial learns what it would have learnt alone"
