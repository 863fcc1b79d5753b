"""Environment of agents: one rule for every backend."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.supervise.agent_environment import agent_environment
from tests.cluster.conftest import ToyRun


def variables(root: Path, engine: str = "ranks", cpus: int = 4, **resources: int) -> dict[str, str]:
    run = RunDir.create("x", {"engine": engine, "config": {}, "resources": resources}, root)
    return agent_environment(run, Resources.model_validate(resources), cpus=cpus)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.mark.parametrize(("cpus", "ranks", "threads"), [(4, 1, "4"), (4, 2, "2"), (4, 8, "1"), (16, 2, "4")])
def test_ranks_share_the_cores_that_there_are(tmp_path: Path, cpus: int, ranks: int, threads: str) -> None:
    result = variables(tmp_path, cpus=cpus, ranks_per_node=ranks)
    assert (result["OMP_NUM_THREADS"], result["ROPEWALK_NODE_CPUS"], result["ROPEWALK_NODE_GPUS"]) == (threads, str(cpus), "0")


@pytest.mark.parametrize("engine", ["ray", "process"])
def test_other_engines_choose_their_threads_themselves(tmp_path: Path, engine: str) -> None:
    assert "OMP_NUM_THREADS" not in variables(tmp_path, engine)


def test_a_users_threads_are_kept_and_a_token_is_told_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert variables(tmp_path, gpus=2) == {"ROPEWALK_NODE_CPUS": "4", "ROPEWALK_NODE_GPUS": "2"}
    run = RunDir.create("x", {"engine": "ray", "config": {}, "resources": {}}, tmp_path)
    environment = agent_environment(run, Resources(), cpus=1, gpus=5, ray_token="secret")
    assert (environment["ROPEWALK_NODE_GPUS"], environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == (
        "5",
        "token",
        "secret",
    )


def test_ranks_start_with_the_environment_of_the_run(toy: Callable[..., ToyRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    run = toy("variables", "ranks", required_environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"})
    run.finish()
    assert run.run.results() == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Tree"}, "what the user has set stays"
