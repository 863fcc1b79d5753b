"""Goodput of a training that Slurm requeues, for which the time in the queue is no training, or that loses a rank."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.timed import PLAN
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import pretrain_config
from tests.jobs.results.witnessed import check, fault
from tests.slurm.toy import SlurmToy


@pytest.mark.soak("four trainings; make test has other disturbances on the local backend")
@pytest.mark.parametrize("step", [8, 13, 22, None])
def test_a_requeued_training(
    slurm_lab: Lab, start: Callable[..., SlurmToy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int | None
) -> None:
    plan = [fault("data", 5, 0.5), fault("save", 10, 0.7), fault("validate", 20, 0.6)]
    plan += [fault("kill", 17, rank=1)] if step is None else []
    monkeypatch.setenv(PLAN, json.dumps(plan))
    config = pretrain_config(make_dataset(tmp_path / "data"), steps=30, checkpoint={"every_steps": 10})
    config |= {"validation": {"every_steps": 20, "max_sequences": 4}}
    run = start("tests.fakes.timed:train", resources={"nodes": 2}, **config)
    if step is not None:
        run.reach(step)
        subprocess.run(["scontrol", "requeue", run.job], check=True)
    assert run.finish().state is RunState.SUCCEEDED
    check(run.run, plan)
