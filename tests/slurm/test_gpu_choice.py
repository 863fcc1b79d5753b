"""A training that sets no `gpus` on a real Slurm whose nodes have GPUs, by Slurm's count."""

from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.backend import SlurmBackend
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell, pretrain
from tests.slurm.conftest import MakeLab, end_jobs


def test_a_training_on_nodes_with_gpus_is_refused_with_the_choice(
    make_lab: MakeLab,
    shell: Shell,  # noqa: F811
) -> None:
    make_lab(nodes=2, gpus=8)
    runs = shell.home / "slurm"
    (shell.home / "clusters.yaml").write_text(
        yaml.safe_dump({"big": {"backend": "slurm", "runs": str(runs), "sbatch": {"hold": True}}})
    )
    on = ("--on", "big", "resources.time_limit_minutes=5")
    message = shell.mistake("submit", *pretrain(*on))
    assert "resources.gpus: not set, but nodes of partition main have 8 GPUs; set resources.gpus=8 to" in message
    assert "or resources.gpus=0 to compute on the CPU" in message
    assert not RunDir.all(runs)
    cases = {"resources.gpus=8": 8, "resources.gpus=0": 0}
    try:
        submitted = {choice: shell("submit", *pretrain(*on, choice)).strip() for choice in cases}
    finally:
        end_jobs(*(f"ropewalk-{run.id}" for run in RunDir.all(runs)))
    assert {choice: RunDir(runs / run).resources().gpus for choice, run in submitted.items()} == cases


@pytest.mark.usefixtures("slurm_lab")
def test_a_partition_without_gpus_needs_no_choice() -> None:
    assert SlurmBackend(Profile(name="big", backend="slurm")).gpu_supply().per_node == 0


@pytest.mark.parametrize("options", [{"gres": "gpu:a100:8"}, {"sbatch": {"gpus-per-task": 1}}])
def test_a_profile_that_requests_gpus_leaves_no_choice(options: dict[str, object]) -> None:
    assert SlurmBackend(Profile(name="big", backend="slurm", options=options)).gpu_supply().per_node == 0


def test_a_cluster_that_does_not_answer_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "none").touch()  # without the file Slurm would look for a controller in the domain name system
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none"))
    with pytest.raises(BackendError):
        SlurmBackend(Profile(name="big", backend="slurm")).gpu_supply()
