"""Cluster profiles, and backends found by name."""

from pathlib import Path

import pytest

from cluster.backends.local.backend import LocalBackend
from cluster.backends.profiles import load_backend, load_profile
from cluster.config import Resources
from cluster.config_reader import read_yaml
from cluster.errors import BackendError, ConfigError
from cluster.run.directory import RunDir
from cluster.spec import Engine


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
    monkeypatch.setattr("cluster.backends.profiles.read_yaml", lambda path: read.append(path) or read_yaml(path))
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


def test_the_dry_run_shows_every_agent(tmp_path: Path) -> None:
    run = RunDir.create("x", {"engine": Engine.RANKS.value}, tmp_path)
    script = load_backend("local").render(run, Resources.model_validate({"nodes": 2}))
    assert script.count("-m cluster.agent") == 2
    assert "--address 127.0.1.2" in script
    assert str(tmp_path) not in script
