"""A job with GPUs that says nothing of cores: what is told, and where it has enough of them anyway."""

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.commands import Slurm
from tests.fakes.backend import FakeBackend
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell, pretrain

PARTITION = "PartitionName={name} Default={default} State=UP TotalNodes=2 OverSubscribe={share} JobDefaults={defaults}\n"
NODES = "n1|idle|0/64/0/64|257000|gpu:a100:4(S:0-1)\nn2|idle|0/96/0/96|257000|gpu:a100:4\nn3|idle|0/4/0/4|1|(null)\n"


def notice(resources: dict[str, Any], profile: dict[str, Any] | None = None, **cluster: str) -> str:
    """Notice that a submission to a cluster prints."""
    return backend(profile, **cluster).resources_notice(Resources.model_validate(resources))


def backend(profile: dict[str, Any] | None = None, **cluster: str) -> SlurmBackend:
    """A cluster whose Slurm answers as `cluster` says."""

    def answer(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        share, defaults = cluster.get("share", "NO"), cluster.get("defaults", "(null)")
        texts = {
            "partition": PARTITION.format(name="gpu", default="YES", share=share, defaults=defaults)
            + PARTITION.format(name="cpu", default="NO", share="NO", defaults="(null)"),
            "config": f"SelectType = {cluster.get('select', 'select/cons_tres')}\nJobDefaults = {cluster.get('all', '(null)')}\n",
            "--version": "slurm 24.05.1\n",
            "ping": "Slurmctld(primary) at n0 is UP\n",
        }
        text = NODES if command[0] == "sinfo" else texts.get(command[-1], "")
        return subprocess.CompletedProcess(list(command), int(cluster.get("away", "0")), text, "")

    return SlurmBackend(Profile(name="big", backend="slurm", options=profile or {}), Slurm(answer))


def test_one_core_for_eight_gpus_is_told_with_a_number_to_set() -> None:
    printed = notice({"gpus": 4})
    assert "Slurm gives a job with GPUs one core a node" in printed
    assert printed.endswith("set resources.cpus=64 with resources.gpus=4"), "of the smallest node"
    assert notice({"gpus": 2}).endswith("set resources.cpus=32 with resources.gpus=2")
    assert notice({"gpus": 8}, away="1").endswith("set resources.cpus=64 with resources.gpus=8"), "though Slurm does not tell"


@pytest.mark.parametrize(
    ("resources", "profile", "cluster"),
    [
        ({}, {}, {}),
        ({"gpus": 4, "cpus": 2}, {}, {}),
        ({"gpus": 4}, {"exclusive": True}, {}),
        ({"gpus": 4}, {"sbatch": {"cpus-per-gpu": 8}}, {}),
        ({"gpus": 4}, {}, {"share": "EXCLUSIVE"}),
        ({"gpus": 4}, {}, {"defaults": "DefCpuPerGPU=16,DefMemPerGPU=1000"}),
        ({"gpus": 4}, {"partition": "gpu"}, {"all": "DefCpuPerGPU=16"}),
        ({"gpus": 4}, {}, {"select": "select/linear"}),
    ],
)
def test_where_a_job_gets_cores_nothing_is_told(
    resources: dict[str, Any], profile: dict[str, Any], cluster: dict[str, str]
) -> None:
    assert notice(resources, profile, **cluster) == ""


def test_doctor_tells_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    results = {check.name: check for check in backend().checks()}
    assert results["cores"].ok
    assert results["cores"].detail.startswith("warning: where resources.cpus is not set")
    assert results["cores"].detail.endswith("set resources.cpus=16 with resources.gpus=1")
    assert "cores" not in {check.name for check in backend({"exclusive": True}).checks()}


def test_a_submission_and_a_dry_run_tell_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(FakeBackend, "resources_notice", lambda _, resources: f"{resources.gpus} GPUs and one core")
    run = shell("submit", *pretrain("--on", "slow", "resources.gpus=8")).strip()
    assert "\n" not in run
    assert "resources: 8 GPUs and one core\n" in shell.err
    shell("run", *pretrain("--on", "good", "resources.gpus=8"))
    assert "resources: 8 GPUs and one core\n" in shell.err
    script = shell("submit", *pretrain("--on", "slow", "--script", "resources.gpus=8"))
    assert script.splitlines()[-1] == "# 8 GPUs and one core"
