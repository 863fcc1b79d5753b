"""Damaged and newer files of the registry: a serving run keeps its version, other commands name the file, nothing is skipped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError, DamagedFileError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.deployments import record_rollout, rollouts
from ropewalk.jobs.models.registry.promote import promote, rollback
from ropewalk.jobs.runs.models.model_versions import RegisteredModel, find_version
from ropewalk.jobs.serving.serve.controller.applications import Applications
from ropewalk.jobs.serving.serve.controller.controller import Controller
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles
from ropewalk.jobs.serving.serve.models import WatchedAlias, find_source
from tests.jobs.models.registry.registered import directory
from tests.jobs.shell import Shell

MOVE = {"version": 1, "kind": "promote", "by": "me", "time": 2.0}
DAMAGED = {
    "no keys": "{}",
    "a list": "[]",
    "cut short": '{"version": 1, "ki',
    "no number": json.dumps({**MOVE, "version": "one"}),
    "an unknown kind": json.dumps({**MOVE, "kind": "freeze"}),
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegisteredModel:
    """A model whose two versions were promoted one after the other."""
    root = tmp_path / "runs"
    monkeypatch.setenv("ROPEWALK_RUNS", str(root))
    for name in ("one", "two"):
        promote(str(directory(tmp_path / name, name.encode())), name="main", root=root, force="a test")
    return RegisteredModel(root, "main")


@pytest.fixture
def controller(model: RegisteredModel, tmp_path: Path) -> Controller:
    run = RunDir.create("serve", {"job": "serve", "config": {"model": "main@production"}, "resources": {}}, model.root)
    ServingFiles(run).make()
    context, local = JobContext(run=run, attempt=run.begin_attempt()), LocalFiles(tmp_path / "local")
    return Controller(context, Applications(None, tmp_path, tmp_path), WatchedAlias(model, "production"), local)  # type: ignore[arg-type]


def moves(model: RegisteredModel) -> Path:
    return model.folder / "aliases/production"


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_serving_run_keeps_its_version_and_every_move_is_refused(
    model: RegisteredModel, controller: Controller, tmp_path: Path, text: str
) -> None:
    assert controller._read_wanted().stable == "main@2"
    damaged = moves(model) / "000003.json"
    damaged.write_text(text)
    for _ in range(3):
        controller._wanted_at = float("-inf")
        assert controller._read_wanted().stable == "main@2"
    (event,) = [event for event in controller.context.run.read_events() if event["event"] == "registry_unreadable"]
    assert str(damaged) in event["error"]
    refused: tuple[Callable[[], Any], ...] = (
        lambda: find_version("main@production", model.root),
        lambda: find_source("main@production", model.root),
        lambda: promote("main@1", root=model.root, force="a test"),
        lambda: rollback(root=model.root),
    )
    for action in refused:
        with pytest.raises(DamagedFileError, match=str(damaged)):
            action()
    assert find_source("main@production", model.root, serves=True).alias == "production", "its controller may start again"
    assert find_version("main@1", model.root) is not None, "other names of the model are not affected"
    damaged.unlink()
    controller._wanted_at = float("-inf")
    assert controller._read_wanted().stable == "main@2"


def test_a_damaged_move_does_not_bring_the_version_before_it_back(model: RegisteredModel) -> None:
    (moves(model) / "000002.json").write_text('{"version": 2')
    with pytest.raises(DamagedFileError, match=r"000002\.json: damaged: not JSON"):
        model.current("production")


def test_a_file_without_permission_is_named(model: RegisteredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DamagedFileError, match=r"000002\.json: cannot be read: Permission denied"):
        model.current("production")


def test_keys_of_a_later_version_of_the_program_are_kept(model: RegisteredModel) -> None:
    (moves(model) / "000003.json").write_text(json.dumps({**MOVE, "ticket": "X-1"}))
    file = model.folder / "versions/000001.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "licence": "MIT", "model": "other"}))
    assert model.current("production") is not None
    assert model.history("production")[-1].plain()["ticket"] == "X-1"
    assert (model.versions()[0].plain()["licence"], model.versions()[0].id) == ("MIT", "main@1")


def test_a_damaged_version_is_an_error_for_its_aliases_only(model: RegisteredModel) -> None:
    (model.folder / "versions/000001.json").write_text("{}")
    assert find_version("production", model.root) is not None
    with pytest.raises(DamagedFileError, match=r"versions/000001\.json: damaged: weights: Field required"):
        find_version("main@1", model.root)


def test_a_history_that_lacks_a_move_is_damaged(model: RegisteredModel) -> None:
    rollback(root=model.root)
    (moves(model) / "000001.json").unlink()
    with pytest.raises(DamagedFileError, match=r"aliases/production/000003\.json of main rolls back to version 1"):
        rollback(root=model.root)


def test_a_damaged_report_of_a_serving_run_is_named(model: RegisteredModel) -> None:
    record_rollout(model.root, "main@2", "production", "serving", by="serve s")
    (model.folder / "rollouts/000002.json").write_text('{"version": 2}')
    with pytest.raises(DamagedFileError, match=r"rollouts/000002\.json: damaged: alias: Field required"):
        rollouts(model.root, "main")
    WatchedAlias(model, "production").report("main@2", "refused", "", "serve s")  # only logged


def test_a_command_names_the_file(model: RegisteredModel, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (moves(model) / "000003.json").write_text("[]")
    shell = Shell(capsys, monkeypatch, tmp_path)
    for arguments in (
        ["models"],
        ["rollback"],
        ["promote", "main@1", "--to", "production", "--force", "a test"],
        ["run", "serve", "model=production"],
    ):
        assert "aliases/production/000003.json: damaged" in shell.mistake(*arguments)


def test_an_empty_file_of_a_crash_is_no_damage(model: RegisteredModel) -> None:
    (moves(model) / "000003.json").touch()
    current = model.current("production")
    assert current is not None
    assert current.number == 2
    with pytest.raises(ConfigError, match="no such version"):
        model.version(9)
