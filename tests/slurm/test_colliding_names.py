"""The installed program on Slurm, in a project whose modules are called like the top folders of this program."""

from pathlib import Path

import pytest
import yaml

from ropewalk.slurm.lab.cluster import Lab
from tests.colliding import call_functions, run_program, sweep, train


@pytest.fixture
def on_slurm(slurm_lab: Lab, command: Path, colliding: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, with a profile of the cluster that runs the installed program."""
    profile = {"backend": "slurm", "runs": str(colliding / "runs"), "python": str(command.parent / "python")}
    monkeypatch.setenv("HOME", str(colliding))
    (colliding / ".config/ropewalk").mkdir(parents=True)
    (colliding / ".config/ropewalk/clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    return colliding


@pytest.mark.soak("make test runs it on this machine, and checks the command that Slurm starts")
def test_a_program(command: Path, on_slurm: Path) -> None:
    run_program(command, on_slurm, "--on", "lab")


@pytest.mark.soak("the same as on this machine, at the speed of Slurm")
def test_functions_and_training(command: Path, on_slurm: Path) -> None:
    call_functions(command, on_slurm, "lab")
    train(command, on_slurm, "--on", "lab")
    sweep(command, on_slurm, "--on", "lab")
