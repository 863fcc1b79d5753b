"""Kubernetes, in a project whose modules are called like the top folders of this program."""

from pathlib import Path

import pytest
import yaml

from tests.colliding import call_functions, make_project, run_program, sweep, train
from tests.k8s.cluster import Namespace


@pytest.fixture
def on_kubernetes(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project on the volume, which pods see under the same path, with a profile of the cluster."""
    project = make_project(namespace.runs / "project")
    project.chmod(0o777)  # pods run as another user, and write the data set here
    profile = {"backend": "k8s", **namespace.options(claim_path=str(namespace.runs))}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    monkeypatch.setenv("HOME", str(project))
    (project / ".config/ropewalk").mkdir(parents=True)
    (project / ".config/ropewalk/clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    return project


@pytest.mark.soak("make test runs it on this machine, and checks the command that Kubernetes starts")
def test_a_program(command: Path, on_kubernetes: Path, namespace: Namespace) -> None:
    run_program(command, on_kubernetes, "--on", "lab", python=namespace.cluster.python)


@pytest.mark.soak("the same as on this machine, at the speed of Kubernetes")
def test_functions_and_training(command: Path, on_kubernetes: Path, namespace: Namespace) -> None:
    account = f"--serviceaccount={namespace.name}:ropewalk"  # a sweep's driver submits its trials
    namespace.kubectl("create", "rolebinding", "ropewalk-sweeps", "--role=ropewalk-sweeps", account)
    call_functions(command, on_kubernetes, "lab")
    train(command, on_kubernetes, "--on", "lab")
    sweep(command, on_kubernetes, "--on", "lab")
