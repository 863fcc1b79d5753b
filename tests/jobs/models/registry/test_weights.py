"""Gates and versions go by the content of the weights, whatever the times of their files are."""

import os
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.directory import model_directory
from ropewalk.jobs.models.registry.promote import promote, rollback
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.models.registry.weights import check_weights
from ropewalk.jobs.runs.models.model_versions import RegisteredModel, find_version
from ropewalk.jobs.serving.serve.models import FixedModel, WatchedAlias
from ropewalk.jobs.training.loop.weights.content_hash import JudgedWeights, hash_of_directory
from tests.jobs.models.registry.registered import directory, judged, trained
from tests.jobs.shell import Shell

YESTERDAY = (1e9, 1e9)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def replace_weights(path: Path, weights: bytes = b"weights that nobody evaluated") -> None:
    """Replace the weights by others with older file times, as `rsync -a` and `cp -p` do."""
    (path / "model.safetensors").write_bytes(weights)
    os.utime(path / "model.safetensors", YESTERDAY)


@pytest.fixture
def replaced(root: Path, tmp_path: Path) -> Path:
    """A directory in production whose weights were replaced afterwards; main@1 stood before it."""
    promote(str(directory(tmp_path / "first", b"first")), name="main", root=root, force="a test")
    path = directory(tmp_path / "model")
    judged(root, str(path), step=None)
    assert promote(str(path), root=root).version_id == "main@2"
    replace_weights(path)
    return path


def test_other_weights_do_not_pass_by_the_gate_of_earlier_ones(root: Path, replaced: Path) -> None:
    with pytest.raises(ConfigError, match="no gate has judged its current content"):
        promote(str(replaced), root=root)
    assert "it has not passed a gate" in FixedModel(str(replaced), root).wanted(None, gated=True).barred[replaced.name]


def test_the_same_weights_are_judged_wherever_they_are(root: Path, replaced: Path, tmp_path: Path) -> None:
    copy = directory(tmp_path / "copy")
    assert [gate["passed"] for gate in promote(str(copy), root=root).gates] == [True]


def test_a_version_whose_weights_were_replaced_is_neither_promoted_nor_rolled_back_to(root: Path, replaced: Path) -> None:
    problem = f"main@2: the weights in {replaced} are not those that were registered"
    with pytest.raises(ConfigError, match=problem):
        promote("main@2", "candidate", root=root)
    with pytest.raises(ConfigError, match=problem):
        promote("main@2", "candidate", root=root, force="even so")
    promote("main@1", root=root, force="a test")
    with pytest.raises(ConfigError, match=problem):
        rollback(root=root)
    assert RegisteredModel(root, "main").current("production").id == "main@1"  # type: ignore[union-attr]
    replace_weights(replaced, b"w")
    assert rollback(root=root).version_id == "main@2", "the weights are back"


def test_a_serving_run_loads_no_other_weights(root: Path, replaced: Path, tmp_path: Path) -> None:
    source = WatchedAlias(RegisteredModel(root, "main"), "production")
    assert source.directory("main@1", tmp_path) == tmp_path / "first"
    with pytest.raises(ConfigError, match=f"main@2: the weights in {replaced} are not those that were registered"):
        source.directory("main@2", tmp_path)
    assert source.revert_aliases("main@2", "other weights", "serve s") == "production points to main@1 again"


def test_the_weights_of_an_exported_checkpoint_are_compared_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(run: RunDir, target: Path, step: int | None) -> None:
        directory(target, run.id.encode())

    monkeypatch.setattr("ropewalk.jobs.models.cards.export.export_with_cards", export)
    version = register(trained(root).id, root=root)
    target = model_directory(version)
    check_weights(version)
    source = WatchedAlias(RegisteredModel(root, "main"), "production")
    assert source.directory("main@1", tmp_path) == target
    replace_weights(target)
    with pytest.raises(ConfigError, match=f"main@1: the weights in {target} are not those that were exported; remove"):
        source.directory("main@1", tmp_path)
    for file in target.iterdir():
        file.unlink()
    target.rmdir()
    assert model_directory(version) == target
    check_weights(version)


def test_a_checkpoint_that_was_written_again_is_not_exported(root: Path) -> None:
    run = trained(root)
    version = register(run.id, root=root)
    manifest = run.checkpoints / "step-00000004/manifest.json"
    manifest.write_text('{"files": [{"path": "a", "size": 1, "checksum": "other"}]}')
    with pytest.raises(ConfigError, match="is not the registered one"):
        model_directory(version)
    assert not version.directory.exists()


def test_a_directory_that_changes_while_it_is_judged_is_an_error(root: Path, tmp_path: Path) -> None:
    path = directory(tmp_path / "model")
    run = RunDir.create("evaluate", {"job": "evaluate", "config": {"model": str(path)}}, root)
    assert JudgedWeights(run, str(path)).hash(None) == hash_of_directory(path)
    replace_weights(path)
    second_attempt = JudgedWeights(run, str(path))
    with pytest.raises(ConfigError, match="have changed while they were judged"):
        second_attempt.hash(None)


def test_the_command_says_it(replaced: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shell = Shell(capsys, monkeypatch, tmp_path)
    message = shell.mistake("promote", "main@2", "--to", "candidate", "--force", "even so")
    assert f"main@2: the weights in {replaced} are not those that were registered; restore them, or promote" in message
    assert find_version("main@2") is not None
