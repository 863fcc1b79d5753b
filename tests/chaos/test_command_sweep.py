"""A sweep over a plain script of the user's own, whose driver is killed: each trial is one run, and trained once."""

import os
import signal
import sys
from pathlib import Path

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.records import TrialState, read_records
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.submit import submit
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ROOT / "jobs/configs/examples/plain.py"
STEPS, TRIALS = 20, 16

pytestmark = pytest.mark.soak(
    "sixteen trainings; test_command_config.py covers the values, test_a_killed_driver_finishes_every_trial_once the kill"
)


def test_sixteen_trials_of_a_plain_script_with_the_driver_killed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PYTHONPATH": ROOT, "ROPEWALK_RUNS": tmp_path / "runs", "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, str(PLAIN), "--steps", str(STEPS), "--lr", "{lr}", "--pause", "0.05"]
    base = {"command": command, "directory": str(tmp_path), "resources": {"ranks_per_node": 1}}
    keys = {"job": "command", "base": base, "space": {"values.lr": {"loguniform": [1e-3, 1e-1]}}, "metric": "train/loss"}
    keys |= {"trials": TRIALS, "max_concurrent": 2}
    sweep = submit("sweep", load_config(config_of(find_job("sweep")), keys))
    try:
        for over in (2, 7):
            until(lambda over=over: sum(r.state.final for r in read_records(sweep)) >= over, Patience.CLUSTER)
            driver = [p for p in processes_of(sweep.path) if "ropewalk.cluster.engines.entry" in p.cmdline()]
            os.kill(driver[0].pid, signal.SIGKILL)
        for finished in range(8, TRIALS + 1):  # each has the patience of one
            until(lambda finished=finished: sum(r.state.final for r in read_records(sweep)) >= finished, Patience.CLUSTER)
        until(lambda: final_outcome(sweep) is not None, Patience.CLUSTER)
    finally:
        end(processes_of(tmp_path))
    outcome = final_outcome(sweep)
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED
    assert len(sweep.attempts()) == 3, "the driver was killed twice"
    records = read_records(sweep)
    assert [record.state for record in records] == [TrialState.SUCCEEDED] * TRIALS
    assert [len(record.runs) for record in records] == [1] * TRIALS
    runs = [run for run in RunDir.all(tmp_path / "runs") if run.id != sweep.id]
    assert len(runs) == TRIALS
    for run in runs:
        assert [line["step"] for line in run.read_metrics()] == list(range(1, STEPS + 1)), "no step twice"
        assert len(run.attempts()) == 1
