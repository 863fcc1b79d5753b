"""GPUs of local trials: the sweep's own node has none, and still hands out the machine's."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.checks import concurrent_trials
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.job import Driver
from ropewalk.jobs.runs.submit.launcher import users_environment
from tests.fakes.gpus import machine_with


@pytest.mark.parametrize(("users", "restored"), [("all", None), ("2,3", "2,3"), ("", None)])
def test_trials_start_in_the_users_environment_and_not_in_that_of_the_sweeps_node(
    monkeypatch: pytest.MonkeyPatch, users: str, restored: str | None
) -> None:
    node = {"CUDA_VISIBLE_DEVICES": "", "ROPEWALK_NODE_GPUS": "0", "ROPEWALK_MACHINE_DEVICES": users}
    machine_with(8, monkeypatch, **(node if users else {}))
    result = users_environment({})
    assert result.get("CUDA_VISIBLE_DEVICES") == restored
    assert not {"ROPEWALK_NODE_GPUS", "ROPEWALK_MACHINE_DEVICES"} & result.keys()


def test_trials_that_need_too_many_gpus_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(1, monkeypatch, CUDA_VISIBLE_DEVICES="", ROPEWALK_MACHINE_DEVICES="all", ROPEWALK_CLUSTERS="")
    base: dict[str, Any] = {"data": str(tmp_path), "steps": 4, "resources": {"nodes": 1, "gpus": 1}}
    values = {
        "job": "pretrain",
        "base": base,
        "space": {"optim.lr": {"choice": [1e-3, 1e-2]}},
        "metric": "train/loss",
        "trials": 4,
    }
    config = SweepConfig.model_validate(values)
    record = {"job": "sweep", "config": {}, "trials_on": {"cluster": "local", "backend": "local"}, "clusters": {}}
    run = RunDir.create("sweep", record, tmp_path)
    driver = Driver(JobContext(run=run, attempt=1), config)
    assert (driver.gpus, concurrent_trials(config, driver.sample.resources, "local")) == (1, 1)
    base["resources"]["gpus"] = 4
    with pytest.raises(ConfigError, match="are 4 GPUs, but this machine has 1"):
        Driver(JobContext(run=run, attempt=1), SweepConfig.model_validate({**values, "base": base}))
