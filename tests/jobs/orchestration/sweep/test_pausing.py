"""Trials that are paused at each rung, and sweeps whose driver is killed again and again: nothing is lost or done twice."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.jobs.orchestration.sweep.config import SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_record, write_record
from ropewalk.jobs.orchestration.sweep.trials.trial import TrialFollower
from ropewalk.jobs.runs.submit.launcher import launcher
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, events, losses, pretrain_config, weights
from tests.jobs.sweeping import Swept, sweep_config, sweeps
from tests.patience import until

RUNGS = (4, 12)
KILLS, TRIALS = 20, 24


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Swept]]:
    with sweeps(tmp_path) as begin:
        yield begin


def follow(context: SweepContext, *, pauses: bool) -> RunDir:
    """Take a trial to its end, reported every four steps; with `pauses`, another actor continues it after each rung."""
    trial, step = TrialFollower(context, 0), 0
    while True:
        report = trial.next_report()
        if report["done"]:
            record = read_record(context.sweep, 0)
            assert record is not None
            assert record.state is TrialState.SUCCEEDED, record.cause
            return context.run(record.runs[-1])
        if pauses and report["step"] in RUNGS and report["step"] > step:
            step = report["step"]
            trial.leave()
            record = read_record(context.sweep, 0)
            assert record is not None
            assert record.state is TrialState.PAUSED
            trial = TrialFollower(context, 0)


@pytest.mark.soak("four attempts of a training; test_pretrain.py stops and resumes one")
def test_a_trial_that_is_paused_at_each_rung_ends_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, ends = make_dataset(tmp_path / "data"), []
    base = pretrain_config(data, steps=200, validation={"every_steps": 4, "max_sequences": 5}, checkpoint={"every_steps": 200})
    for pauses in (False, True):
        root = tmp_path / str(pauses)
        monkeypatch.setenv(RUNS_VARIABLE, str(root))
        sweep = RunDir.create("sweep", {"job": "sweep", "cluster": "local"}, root)
        sweep.begin_attempt()
        parameters = {"optim.lr": 3e-3}
        write_record(sweep, TrialRecord(trial=0, parameters=parameters, sampled=parameters))
        with launcher(tmp_path / f"{pauses}.log", {"OMP_NUM_THREADS": "1"}, []) as folder:
            context = SweepContext(
                sweep=sweep,
                attempt=1,
                config=sweep_config(job="pretrain", base=base, metric="validation/loss"),
                cluster="local",
                scratch=tmp_path,
                launcher=folder,
                every_steps=4,
                total_steps=200,
                defaults={},
                origin={},
            )
            ends.append(follow(context, pauses=pauses))
    whole, paused = ends
    assert len(whole.attempts()) == 1
    assert len(paused.attempts()) == 1 + len(RUNGS)
    assert len(events(paused, "resumed")) == len(RUNGS)
    assert losses(whole) == losses(paused)
    assert equal(weights(whole), weights(paused))


@pytest.mark.soak("minutes of Ray: the driver is killed twenty times")
def test_a_sweep_whose_driver_is_killed_twenty_times_runs_every_trial_once(start: Callable[..., Swept]) -> None:
    generator = random.Random(0)
    sweep = start(base={"steps": 20, "pause": 0.05}, trials=TRIALS, max_concurrent=2, scheduler="asha", search="gp")
    for _ in range(KILLS):
        until(sweep.driver_pid, describe=sweep.said)
        time.sleep(generator.uniform(0.0, 4.0))  # while Ray starts, trials start, run, are stopped, or end
        if sweep.run.outcome(sweep.run.attempts()[-1]) is not None:
            break
        sweep.kill_driver()
    sweep.finish()
    records = sweep.records()
    assert [record.trial for record in records] == list(range(TRIALS))
    assert {record.state for record in records} <= {TrialState.SUCCEEDED, TrialState.STOPPED}
    assert all(len(record.runs) == 1 for record in records)
    assert len({record.parameters["optim.lr"] for record in records}) == TRIALS
    for steps in sweep.steps().values():
        assert steps == list(range(1, len(steps) + 1)), "no step is missing or done twice"
