"""The registry of models: nothing reaches production without its gate, and every move is made once, whoever moves beside."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run import exclusive
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.numbered import append_numbered, read_numbered
from ropewalk.jobs.models.registry.deployments import record_rollout
from ropewalk.jobs.models.registry.promote import promote, rollback, standing
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.runs.models.model_versions import RegisteredModel, find_version, registered_models
from tests.fakes.nfs import Network, python_on
from tests.jobs.models.registry.registered import directory, judged, trained
from tests.jobs.shell import Shell

_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def in_production(root: Path, name: str = "main") -> str | None:
    result = RegisteredModel(root, name).current("production")
    return result.ref if result else None


def passing(root: Path, *steps: int) -> RunDir:
    run = trained(root, *steps)
    for step in steps or (4,):
        judged(root, run.id, step=step)
    return run


def test_nothing_reaches_production_without_a_passed_gate(root: Path) -> None:
    run = trained(root)
    with pytest.raises(ConfigError, match=r"no gate has judged its checkpoint of step 4.*--force WHY"):
        promote(run.id, root=root)
    judged(root, trained(root, 3).id, step=3)
    with pytest.raises(ConfigError, match="no gate has judged"):
        promote(run.id, root=root)
    refusal = judged(root, f"{run.id}@4", passed=False)
    with pytest.raises(ConfigError, match=r"quiz is 0\.4"):
        promote(run.id, root=root)
    with pytest.raises(ConfigError, match=f"did not pass the gate of {refusal.id}"):
        promote(run.id, "candidate", root=root)
    assert in_production(root) is None
    assert not registered_models(root), "a refusal leaves no version behind"
    with pytest.raises(ConfigError, match="give a reason"):
        promote(run.id, root=root, force=" ")
    move = promote(run.id, root=root, force="the old one insults people")
    assert (move.forced, [gate["passed"] for gate in move.gates]) == ("the old one insults people", [False])
    judged(root, run.id)
    assert promote(trained(root).id, "candidate", root=root).gates == ()
    assert in_production(root) == f"{run.id}@4"


def test_a_promotion_says_who_when_and_by_which_figures(root: Path) -> None:
    move = promote(passing(root).id, root=root)
    assert "@" in move.by
    assert move.time > 0
    assert move.gates[0]["figures"]["quiz"]["value"] == 0.6
    version = find_version("production", root)
    assert version is not None
    assert (version.id, version.lineage["code"]["commit"]) == ("main@1", "c0ffee")
    assert any(
        name.startswith("pinned-by-") for name in os.listdir(RunDir(root / str(version.run)).checkpoints / "step-00000004")
    )


def test_a_directory_is_judged_as_it_is_now(root: Path, tmp_path: Path) -> None:
    path = directory(tmp_path / "model")
    judged(root, str(path), step=None)
    promote(str(path), root=root)
    assert in_production(root) == str(path)
    before = (path / "model.safetensors").stat()
    (path / "model.safetensors").write_bytes(b"other")
    os.utime(path / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync -a and cp -p do
    assert register(str(path), root=root).number == 2, "other weights are another version"
    with pytest.raises(ConfigError, match="no gate has judged its current content"):
        promote(str(path), root=root)


def test_back_and_forth(root: Path) -> None:
    run = passing(root, 1, 2, 3)
    with pytest.raises(ConfigError, match="no model has an alias"):
        rollback(root=root)
    for step in (1, 2, 3):
        promote(f"{run.id}@{step}", "candidate", root=root)
        promote("candidate", root=root)
        assert RegisteredModel(root, "main").current("candidate") is None, "it is in production by now"
    assert rollback(root=root, reason="slow").version == 2
    assert rollback(root=root, only=3).version == 2, "it points to another one already"
    assert rollback(root=root).version == 1
    with pytest.raises(ConfigError, match="with no earlier version"):
        rollback(root=root)
    promote(f"{run.id}@3", root=root)
    assert rollback(root=root).version == 1
    promote(f"{run.id}@2", "candidate", root=root)
    assert rollback("candidate", root=root).version is None
    assert [move.version for move in RegisteredModel(root, "main").history("production")] == [1, 2, 3, 2, 1, 3, 1]
    assert standing(RegisteredModel(root, "main").history("production")) == [1]


def test_names(root: Path, tmp_path: Path) -> None:
    run = passing(root, 3, 4)
    assert find_checkpoint(f"{run.id}@3", root).step == 3
    promote(f"{run.id}@3", root=root, name="chat")
    for ref in ("production", "chat", "chat@production", "chat@1"):
        assert find_checkpoint(ref, root).ref == f"{run.id}@3"
    assert register(str(directory(tmp_path / "other")), "search", root).id == "search@1"
    with pytest.raises(ConfigError, match="choose one with --name: chat, search"):
        register(f"{run.id}@4", root=root)
    promote("search@1", root=root, force="a test")
    for ref, text in {
        "production": "chat@production or search@production",
        "chat@7": "no such version; versions of chat: 1",
        "chat@candidate": "points to no version; aliases of chat: chat@production",
        "nothing": "nor an alias of the registry, nor a run",
    }.items():
        with pytest.raises(ConfigError, match=text):
            find_checkpoint(ref, root)
    with pytest.raises(ConfigError, match="reserved for an alias"):
        register(str(tmp_path / "other"), "production", root)


def test_many_at_once_register_one_version_and_promote_it_once(root: Path) -> None:
    run = passing(root, 1, 2)
    steps = [1, 2] * 6
    workers = [
        _FORK.Process(target=promote, args=(f"{run.id}@{step}",), kwargs={"root": root, "key": f"k{step}"}) for step in steps
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    model = RegisteredModel(root, "main")
    assert sorted(version.step or 0 for version in model.versions()) == [1, 2]
    assert sorted(str(move.key) for move in model.history("production")) == ["k1", "k2"]


def test_whoever_looked_too_early_does_not_overwrite(root: Path) -> None:
    run = passing(root, 1, 2, 3)
    promote(f"{run.id}@1", root=root)
    promote(f"{run.id}@2", root=root)
    with pytest.raises(ConfigError, match="was moved by someone else"):
        promote(f"{run.id}@3", root=root, expected=lambda current: current == 1)
    assert in_production(root) == f"{run.id}@2"


@pytest.mark.parametrize("position", range(3))
def test_killed_at_any_moment_the_move_is_whole_or_not_there(root: Path, position: int) -> None:
    run = passing(root, 1, 2)
    promote(f"{run.id}@1", root=root)
    moments = ("sync_all", "os.link", "after")

    def killed() -> None:
        def die(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        register(f"{run.id}@2", root=root)
        if moments[position] == "sync_all":
            exclusive.sync_all = die  # type: ignore[assignment]
        elif moments[position] == "os.link":
            exclusive.os.link = die  # type: ignore[attr-defined]
        promote(f"{run.id}@2", root=root, key="once")
        die()

    worker = _FORK.Process(target=killed)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert in_production(root) == f"{run.id}@{2 if moments[position] == 'after' else 1}"
    promote(f"{run.id}@2", root=root, key="once")
    assert [move.version for move in RegisteredModel(root, "main").history("production")] == [1, 2]


def test_where_files_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(exclusive.os, "link", refuse)  # type: ignore[attr-defined]
    assert append_numbered(tmp_path, lambda entries: {"n": len(entries)}) == 1
    (tmp_path / "000002.json").touch()  # a crash has left it
    assert append_numbered(tmp_path, lambda entries: {"n": len(entries)}) == 3
    assert read_numbered(tmp_path) == {1: {"n": 0}, 3: {"n": 1}}


APPEND = """
import sys
from pathlib import Path
from ropewalk.cluster.run.numbered import append_numbered
for number in range(25):
    append_numbered(Path(sys.argv[1]), lambda entries: {"who": sys.argv[2], "seen": len(entries)})
"""


def test_two_machines_never_take_one_number_and_see_all_before_theirs(network: Network) -> None:
    here, there = network.client(), network.client()
    (here / "moves").mkdir()
    read_numbered(there / "moves")  # its listing is old from now on
    writers = [python_on(f"n{i}", APPEND, str(position / "moves"), f"n{i}") for i, position in enumerate((here, there))]
    assert [writer.wait() for writer in writers] == [0, 0]
    records = read_numbered(there / "moves")
    assert list(records) == list(range(1, 51))
    assert [entry["seen"] for entry in records.values()] == list(range(50))


@pytest.fixture
def shell(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return Shell(capsys, monkeypatch, tmp_path)


def test_as_a_user_types_it(shell: Shell, root: Path, tmp_path: Path) -> None:
    assert "registry is empty" in shell("models")
    first, second = (str(directory(tmp_path / name, name.encode())) for name in ("one", "two"))
    assert "no gate has judged" in shell.mistake("promote", first, "--to", "production")
    assert "registry is empty" in shell("models"), "a refusal leaves no version behind"
    judged(root, first, step=None)
    assert shell("promote", first, "--to", "production").startswith("main@production -> main@1 (evaluate-")
    shell("promote", second, "--to", "candidate")
    moved = json.loads(shell("promote", "candidate", "--to", "production", "--force", "a try", "--json"))
    assert (moved["version"], moved["forced"], moved["directory"]) == ("main@2", "a try", second)
    record_rollout(root, "main@2", "production", "refused", "it does not load", by="serve:s")
    record_rollout(root, "main@2", "production", "refused", "it does not load", by="serve:s")
    output = shell("models")
    assert "refused: it does not load" in output
    assert "forced: a try" in output
    assert json.loads(shell("rollback", "--why", "worse", "--json"))["version"] == "main@1"
    shown = json.loads(shell("models", "main", "--json"))[0]
    assert shown["aliases"] == {"production": "main@1"}
    assert len(shown["rollouts"]) == 1
    assert [(move["alias"], move["kind"]) for move in shown["history"]][-1] == ("production", "rollback")
    assert "worse" in shell("models", "main")
    assert "no earlier version" in shell.mistake("rollback")
    assert "no model 'x'" in shell.mistake("models", "x")


def test_jobs_take_an_alias_and_run_yaml_says_what_it_meant(root: Path, tmp_path: Path) -> None:
    from ropewalk.cluster.config_reader import load_config
    from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig

    run = passing(root, 3, 4)
    promote(f"{run.id}@3", root=root)
    config: Callable[[str], str] = lambda ref: load_config(EvaluateConfig, {"model": ref, "tasks": []}).model  # noqa: E731
    assert config("production") == config("main@1") == f"{run.id}@3"
    assert config(run.id) == run.id
