"""GPUs that Slurm gave a node, in the environment of its agent."""

from pathlib import Path

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.allocation import SlurmAllocation


@pytest.mark.parametrize(
    ("resources", "variables", "expected"),
    [
        ({}, {}, "0"),
        ({"gpus": 4}, {"SLURM_GPUS_ON_NODE": "4"}, "4"),
        ({"gpus": 4}, {}, "4"),
        ({}, {"SLURM_GPUS_ON_NODE": "2"}, "2"),  # the profile's gres
        ({}, {"ROPEWALK_NODE_GPUS": "8"}, "0"),  # of a run that submitted this one from its own node
    ],
)
def test_an_agent_is_told_how_many_gpus_its_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, int], variables: dict[str, str], expected: str
) -> None:
    for name in ("SLURM_GPUS_ON_NODE", "ROPEWALK_NODE_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = RunDir.create("toy", {"job": "toy", "engine": "ranks", "config": {}}, tmp_path)
    lane = SlurmAllocation(run, Resources.model_validate(resources), SlurmProfile(), Slurm(), job="1", hosts=["n1"])
    log = tmp_path / "said.log"
    assert lane.open(["sh", "-c", "echo $ROPEWALK_NODE_GPUS"], log).wait() == 0
    assert log.read_text().split() == [expected]
