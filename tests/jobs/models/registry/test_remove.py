"""Removed versions: their exports and pins are gone, their records stay, and nothing points to them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.models.registry.directory import model_directory
from ropewalk.jobs.models.registry.promote import promote, rollback
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.models.registry.remove import prune, remove
from ropewalk.jobs.runs.models.model_versions import RegisteredModel
from ropewalk.jobs.serving.serve.files import ServingFiles
from tests.jobs.models.registry.registered import directory, trained
from tests.jobs.shell import Shell


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def export(run: RunDir, target: Path, step: int | None) -> None:
        directory(target, run.id.encode())

    monkeypatch.setattr("ropewalk.jobs.models.cards.export.export_with_cards", export)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def model(root: Path) -> RegisteredModel:
    """Five exported versions, all of which were in production one after the other."""
    for _ in range(5):
        version = register(trained(root).id, "main", root)
        model_directory(version)
        promote(version.id, root=root, force="a test")
    return RegisteredModel(root, "main")


def present(model: RegisteredModel) -> list[int]:
    return [version.number for version in model.versions() if version.removed is None]


def pins(model: RegisteredModel, number: int) -> list[str]:
    version = model.version(number)
    return [name for name in os.listdir(model.root / str(version.run) / "checkpoints/step-00000004") if name.startswith("pinned")]


def serving(root: Path, version: str) -> RunDir:
    run = RunDir.create(
        "serve", {"job": "serve", "cluster": "local", "config": {"model": "main@production"}, "resources": {}}, root
    )
    run.begin_attempt()
    ServingFiles(run).make()
    write_json(ServingFiles(run).state, {"stable": version, "versions": {version: {"phase": "ready", "since": 1.0}}})
    return run


def test_a_removed_version_leaves_its_record_alone(model: RegisteredModel) -> None:
    folder = model.version(2).directory
    assert pins(model, 2) == ["pinned-by-model-main@2"]
    removed = remove("main@2", model.root, by="me", reason="old")
    assert removed.removed is not None
    assert (removed.removed["by"], removed.removed["reason"]) == ("me", "old")
    assert pins(model, 2) == []
    assert not folder.exists()
    assert not folder.with_name("000002.json").exists()
    assert present(model) == [1, 3, 4, 5]
    assert len(model.versions()) == 5
    for action in (lambda: promote("main@2", "candidate", root=model.root), lambda: model_directory(model.version(2))):
        with pytest.raises(ConfigError, match="main@2 was removed by me"):
            action()
    assert promote(removed.ref, "candidate", root=model.root).version_id == "main@6", "it may be registered again"
    assert remove("main@2", model.root).removed == removed.removed, "a second removal changes nothing"


def test_what_is_needed_is_not_removed(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="main@5: main@production points to it"):
        remove("main@5", model.root)
    run = serving(model.root, "main@3")
    monkeypatch.setattr(
        "ropewalk.jobs.models.registry.remove.settle", lambda run: Outcome(state=RunState.RUNNING, exit_code=None, cause="")
    )
    with pytest.raises(ConfigError, match=f"main@3: {run.id} serves it"):
        remove("main@3", model.root)
    for ref in ("main@9", "main@production", "main", "elsewhere@1"):
        with pytest.raises(ConfigError):
            remove(ref, model.root)
    assert present(model) == [1, 2, 3, 4, 5]
    run.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    assert remove("main@3", model.root).removed


def test_a_rollback_to_a_removed_version_is_refused(model: RegisteredModel) -> None:
    remove("main@4", model.root, by="me")
    for checked in (False, True):
        with pytest.raises(ConfigError, match="main@4 was removed"):
            rollback(root=model.root, checked=checked)


def test_pruning_keeps_the_newest_and_what_aliases_and_a_rollback_need(model: RegisteredModel) -> None:
    promote("main@1", "stable", root=model.root)
    assert [version.number for version in prune(model, 1)] == [2, 3]
    assert present(model) == [1, 4, 5]
    assert prune(model, 1) == []
    assert rollback(root=model.root).version == 4


def test_a_directory_of_the_user_is_not_deleted(root: Path, tmp_path: Path) -> None:
    path = directory(tmp_path / "mine")
    register(str(path), "main", root)
    remove("main@1", root)
    assert (path / "model.safetensors").exists()


def test_as_a_user_types_it(model: RegisteredModel, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shell = Shell(capsys, monkeypatch, tmp_path)
    assert "points to it" in shell.mistake("models", "--remove", "main@5")
    assert "main@1 is removed: its export is deleted" in shell("models", "--remove", "main@1")
    assert "removed" in shell("models", "main")
    shown = json.loads(shell("models", "--json"))[0]["versions"]
    assert [version["removed"] is not None for version in shown] == [True, False, False, False, False]
