"""`rm` deletes runs that nothing refers to, `gc` what no run needs; both name what they leave."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.process.scratch import OWNER, machine
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.disk import disk_bytes
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import PREPARED_DATA
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.cli.answers.schema import validate
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.models.registry.remove import remove
from ropewalk.jobs.runs.models.model_versions import RegisteredModel
from tests.jobs.models.registry.registered import directory, trained
from tests.jobs.shell import Shell


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's memory for copies of training states, empty unless a test fills it."""
    monkeypatch.setattr("ropewalk.jobs.runs.space.garbage.memory_root", lambda: tmp_path / "memory")
    return tmp_path / "memory"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def export(run: RunDir, target: Path, step: int | None) -> None:
        directory(target, b"w" * 100_000)

    monkeypatch.setattr("ropewalk.jobs.models.cards.export.export_with_cards", export)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def ended(run: RunDir, state: RunState = RunState.SUCCEEDED) -> RunDir:
    run.write_outcome(run.begin_attempt(), Outcome(state=state, exit_code=0, cause="done"))
    return run


def ran(root: Path, job: str = "evaluate", state: RunState = RunState.SUCCEEDED, **record: Any) -> RunDir:
    return ended(RunDir.create(job, {"job": job, "config": {"model": "m"}, "resources": {"nodes": 1}, **record}, root), state)


def age(path: Path, days: float = 2) -> None:
    os.utime(path, (time.time() - days * 86400,) * 2)


def test_a_run_that_nothing_refers_to_is_deleted_with_all_files(root: Path, tmp_path: Path, shell: Shell) -> None:
    run, other = ran(root, config={"output": str(tmp_path / "data")}), ran(root)
    (run.path / "big").write_bytes(b"x" * 3_000_000)
    assert f"would remove {run.id}: 2.9 MiB" in shell("rm", "--dry-run", run.id)
    assert run.path.exists()
    assert shell("rm", run.id) == f"removed {run.id}: 2.9 MiB; {tmp_path / 'data'} stays\n"
    assert not run.path.exists()
    assert [each.id for each in RunDir.all(root)] == [other.id]
    assert list((root / ".removed").iterdir()) == []
    assert "no run" in shell.mistake("rm", run.id)


def test_fetched_versions_that_no_run_names_are_garbage_with_what_only_they_have(root: Path, shell: Shell) -> None:
    store = root / ".hub"
    for version, names in {"old": ("shared", "weights"), "new": ("shared", "other")}.items():
        folder = store / f"models/org/name@{version}"
        folder.mkdir(parents=True)
        for name in names:
            blob = store / "blobs" / name
            blob.parent.mkdir(exist_ok=True)
            if not blob.exists():
                blob.write_bytes(b"x" * 1000)
            os.link(blob, folder / f"{name}.safetensors")
    (store / "blobs/rest.partial").write_bytes(b"x" * 500)
    run = ran(root, config={"model": {"path": str(store / "models/org/name@new")}})
    assert shell("gc") == "nothing to delete\n", "what is young is kept"
    for path in (*store.glob("blobs/*"), *store.glob("models/org/*")):
        age(path)
    items = json.loads(shell("gc", "--yes", "--json"))
    assert items["bytes"] == 1500
    assert {path.name for path in store.rglob("*") if path.is_file()} == {
        *("shared", "other", "shared.safetensors", "other.safetensors"),
    }
    assert run.path.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"run": "RUN"}},
        {"model": "RUN@4"},
        {"teacher": "PATH/checkpoints"},
        {"compare": ["x", "RUN"]},
        {"data": "DATA"},
        {"data": [{"path": "DATA/shards", "weight": 1}]},
        {"input": ["DATA/rejected/*.jsonl"]},
    ],
)
def test_a_run_that_another_run_reads_is_kept(root: Path, tmp_path: Path, shell: Shell, config: dict[str, Any]) -> None:
    run = ran(root, "preprocess", config={"output": str(tmp_path / "data")})
    text = json.dumps(config).replace("PATH", str(run.path)).replace("RUN", run.id).replace("DATA", str(tmp_path / "data"))
    reader = ran(root, config=json.loads(text))
    error = shell.mistake("rm", run.id)
    assert f"{run.id} is needed by {reader.id} ({next(iter(config))}" in error
    assert "remove these runs with it" in error
    assert run.path.exists()
    assert f"removed {run.id}" in shell("rm", run.id, reader.id)
    assert not run.path.exists()


def test_opened_weights_and_prepared_data_count_as_references(root: Path, tmp_path: Path, shell: Shell) -> None:
    base, maker = ended(trained(root)), ran(root, "collect", config={"output": str(tmp_path / "data")})
    write_json(trained(root).model_record, {"weights": {"run": base.id, "step": 4}})
    assert f"{base.id} is needed by" in shell.mistake("rm", base.id)
    write_json(ran(root).path / PREPARED_DATA, {"path": str(tmp_path / "data"), "hash": "x"})
    assert "which reads its data set" in shell.mistake("rm", maker.id)


def test_parents_and_children_are_removed_together_or_not_at_all(root: Path, shell: Shell) -> None:
    sweep = ran(root, "sweep")
    trials = [ran(root, "pretrain", parent=sweep.id) for _ in range(7)]
    error = shell.mistake("rm", sweep.id)
    assert f"{trials[0].id}, which it started" in error
    assert "and 2 others" in error
    assert f"{sweep.id}, which started it" in shell.mistake("rm", trials[0].id)
    assert len(RunDir.all(root)) == 8, "an error comes before any deletion"
    shell("rm", sweep.id, *(trial.id for trial in trials))
    assert RunDir.all(root) == []


def test_a_registered_run_is_kept_until_its_version_is_removed(root: Path, shell: Shell) -> None:
    run = ended(trained(root))
    version = register(run.id, "main", root)
    assert f"{run.id} is needed by main@1 of the registry" in shell.mistake("rm", run.id)
    remove(version.id, root)
    shell("rm", run.id)


def test_a_run_that_has_not_ended_is_kept(root: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create("x", {"job": "pretrain", "config": {}, "resources": {"nodes": 1}, "cluster": "local"}, root)
    run.begin_attempt()
    running = Outcome(state=RunState.RUNNING, exit_code=None, cause="")
    monkeypatch.setattr("ropewalk.jobs.runs.space.remove.settle", lambda run: running)
    assert f"{run.id} is running; `ropewalk cancel {run.id}` ends it" in shell.mistake("rm", run.id)


@pytest.fixture
def littered(root: Path, tmp_path: Path) -> dict[str, Path]:
    """A root with one of everything that is needed, and one of everything that is not."""
    paths = {
        "used code": root / ".code/aaaa",
        "code": root / ".code/bbbb",
        "young code": root / ".code/cccc",
        "altered code": root / ".code/.aaaa.altered.0123",
        "code of a resume": root / ".code/abcd",
        "arriving": root / ".arriving/gone-run",
        "used prepared": root / ".prepared/dddd",
        "prepared": root / ".prepared/eeee",
        "unfinished prepared": root / ".prepared/.ffff.gone-run",
        "used packages": root / ".packages/aa00",
        "packages": root / ".packages/bb00",
        "used notify": root / ".notify/cc00",
        "notify": root / ".notify/dd00",
        "removed": root / ".removed/old-run.abcd",
        "work": tmp_path / "failed/.work",
        "memory": tmp_path / "memory/mabcdefgh",
        "used work": tmp_path / "making/.work",
    }
    for path in paths.values():
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 50_000)
        age(path)
    (paths["memory"] / OWNER).write_text(machine())
    age(paths["young code"], days=0)
    age(paths["arriving"], days=40)
    run = ran(root, code={"snapshot": "aaaa"}, packages={"hash": "aa00"}, submission={"id": "cc00", "runs": 2})
    run.write_changes([{"attempt": 2, "config": {}, "code": {"snapshot": "abcd"}}])
    write_json(run.path / PREPARED_DATA, {"path": "../.prepared/dddd", "hash": "x"})
    ran(root, "preprocess", RunState.FAILED, config={"output": str(tmp_path / "failed")})
    ran(root, "preprocess", RunState.FAILED, config={"output": str(tmp_path / "making")})
    RunDir.create("preprocess", {"job": "preprocess", "config": {"output": str(tmp_path / "making")}}, root).begin_attempt()
    return paths


def test_gc_lists_what_no_run_needs_and_deletes_it_when_told(littered: dict[str, Path], shell: Shell) -> None:
    needed = {name for name in littered if name.startswith(("used", "young", "code of"))}
    listed = json.loads(shell("gc", "--json"))
    assert {item["path"] for item in listed["items"]} == {str(path) for name, path in littered.items() if name not in needed}
    kinds = {"code", "prepared", "packages", "notify", "removed", "work", "arriving", "memory"}
    assert {item["kind"] for item in listed["items"]} == kinds
    validate("gc", json.dumps(listed))
    assert listed["bytes"] == sum(disk_bytes(path) for name, path in littered.items() if name not in needed)
    assert "can be deleted: `ropewalk gc --yes`" in shell("gc")
    assert all(path.exists() for path in littered.values()), "a list deletes nothing"
    assert shell("gc", "--yes").splitlines()[-1].startswith("deleted ")
    assert {name for name, path in littered.items() if path.exists()} == needed
    assert shell("gc") == "nothing to delete\n"


def test_gc_removes_old_versions_that_nothing_needs(root: Path, shell: Shell) -> None:
    from ropewalk.jobs.models.registry.directory import model_directory

    for _ in range(4):
        version = register(ended(trained(root)).id, "main", root)
        model_directory(version)
    promote("main@1", root=root, force="a test")
    model = RegisteredModel(root, "main")
    assert shell("gc") == "nothing to delete\n", "five versions are kept by default"
    listed = json.loads(shell("gc", "--versions", "2", "--json"))
    assert [item["path"] for item in listed["items"]] == [str(model.version(2).directory)]
    assert listed["bytes"] > 100_000
    assert model.version(2).removed is None
    shell("gc", "--versions", "2", "--yes")
    assert [version.number for version in model.versions() if version.removed is None] == [1, 3, 4]
    assert not model.version(2).directory.exists()


def test_show_says_what_a_run_takes_on_disk(root: Path, shell: Shell) -> None:
    run = ran(root)
    (run.path / "big").write_bytes(b"x" * 5_000_000)
    assert "4.8 MiB" in next(line for line in shell("show", run.id).splitlines() if "on disk" in line)
    assert json.loads(shell("show", run.id, "--json"))["bytes"] == disk_bytes(run.path) > 5_000_000
    os.link(run.path / "big", run.path / "again")
    assert disk_bytes(run.path) < 6_000_000, "a file with two names counts once"
