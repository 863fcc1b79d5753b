"""Cluster profiles, and backends found by name."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ropewalk.cluster.backends.local import queue
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.backends.local.queue import Queue
from ropewalk.cluster.backends.profiles import load_backend, load_profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import read_yaml
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import QUEUE
from ropewalk.cluster.spec import Engine


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "clusters.yaml"
    path.write_text("desk: {backend: local}\nmoon: {backend: pbs, queue: q}\n")
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(path))
    return path


@pytest.mark.usefixtures("profiles")
def test_a_profile_names_its_backend() -> None:
    assert isinstance(load_backend("desk"), LocalBackend)
    assert isinstance(load_backend("local"), LocalBackend)
    assert load_profile("moon").options == {"queue": "q"}


def test_the_profile_file_is_read_once_and_again_when_it_has_changed(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("ropewalk.cluster.backends.profiles.read_yaml", lambda path: read.append(path) or read_yaml(path))
    assert load_profile("moon") == load_profile("moon")
    assert len(read) == 1
    profiles.write_text("moon: {backend: pbs, queue: night}\n")
    assert load_profile("moon").options == {"queue": "night"}
    assert len(read) == 2


@pytest.mark.usefixtures("profiles")
def test_an_unknown_cluster_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown cluster 'dusk'; known: desk, k8s, local, moon, slurm"):
        load_profile("dusk")


@pytest.mark.usefixtures("profiles")
def test_a_backend_that_is_not_installed_is_named() -> None:
    with pytest.raises(BackendError, match=r"'pbs', which is not installed; installed: .*local"):
        load_backend("moon")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big: slurm\n", "cluster 'big': must be keys with values, such as big: {backend: slurm}, is 'slurm'"),
        ("big: 3\n", "cluster 'big': must be keys with values"),
        ("big: [slurm]\n", "cluster 'big': must be keys with values"),
        ("3: {backend: local}\n", "the name of a cluster must be a string, is 3"),
        ("true: {backend: local}\n", "the name of a cluster must be a string, is True"),
        ("big: {backend: local, runs: 5}\n", "cluster 'big': runs: must be a path, is 5"),
        ("big: {backend: [slurm]}\n", "cluster 'big': backend: must be a name, is ['slurm']"),
        ("big:\n", "cluster 'big' has no `backend`: add backend: slurm, k8s or local"),
        ("big: {runs: /x}\n", "cluster 'big' has no `backend`"),
        ("big: {backend: slrum}\n", "cluster 'big' needs the backend 'slrum', which is not installed"),
        ("big: {backend: local, runz: /x}\n", "cluster 'big': unknown key 'runz'; did you mean 'runs'?"),
        ("local: {nodes: 3}\n", "cluster 'local': unknown key 'nodes'"),
    ],
)
def test_a_profile_that_cannot_be_is_the_users_mistake(profiles: Path, text: str, message: str) -> None:
    profiles.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_backend("local" if text.startswith("local") else "big")


def test_a_time_limit_that_leaves_no_time_to_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"time_limit_minutes: 2 is no longer than resources.grace_seconds \(120\)"):
        load_backend("local").check_resources(Resources(time_limit_minutes=2))
    load_backend("local").check_resources(Resources(time_limit_minutes=3))


def test_the_dry_run_shows_every_agent(tmp_path: Path) -> None:
    run = RunDir.create("x", {"engine": Engine.RANKS.value}, tmp_path)
    script = load_backend("local").render(run, Resources.model_validate({"nodes": 2}))
    assert script.count("-m ropewalk.cluster.agent") == 2
    assert "--address 127.0.1.2" in script
    assert f"ropewalk.cluster.agent {run.path} " in script


def test_a_run_that_was_deleted_while_it_waited_holds_no_other_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RunDir.create_all(["x"] * 3, [{"engine": Engine.PROCESS.value, "entry": "x:y"}] * 3, tmp_path)
    for run in runs:
        run.begin_attempt()
    write_json(runs[0].path / QUEUE, {"runs": [run.id for run in runs], "at_once": 1})
    started: list[str] = []

    def fork(command: list[str], *_: object) -> SimpleNamespace:
        started.append(Path(command[-1]).name)
        return SimpleNamespace(pid=os.getpid(), poll=lambda: 0)

    monkeypatch.setattr(queue, "fork_program", fork)
    monkeypatch.setattr(queue, "import_modules", lambda _: None)
    monkeypatch.setattr(queue, "install_stop_handler", lambda _: None)
    waiting = Queue(runs[0])
    shutil.rmtree(runs[1].path)
    waiting.serve()
    assert started == [runs[0].id, runs[2].id]
    assert not runs[1].path.exists()
