"""A run on disk: ids, attempts, outcomes, fences, and files that a crash cannot halve."""

import multiprocessing
import os
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError, StaleAttemptError
from ropewalk.cluster.run.attempts import begin_attempts
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import append_line, read_lines, write_atomically
from ropewalk.cluster.spec import Outcome, RunState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create("My Run!", {"job": "toy", "config": {"seed": 1}}, tmp_path)


def test_a_run_is_found_by_path_id_beginning_and_latest(run: RunDir, tmp_path: Path) -> None:
    for word in (str(run.path), run.id, run.id[:-2], "latest"):
        assert RunDir.find(word, tmp_path).id == run.id
    assert run.id.startswith("my-run-")
    with pytest.raises(ConfigError, match="no run 'nope'"):
        RunDir.find("nope", tmp_path)
    RunDir.create("my run train", {}, tmp_path)
    assert RunDir.find("my-run", tmp_path).id == run.id
    RunDir.create("my run", {}, tmp_path)
    with pytest.raises(ConfigError, match="ambiguous"):
        RunDir.find("my-run", tmp_path)


def test_a_run_directory_holds_no_path_of_itself(run: RunDir, tmp_path: Path) -> None:
    run.begin_attempt(handle="local:1")
    for path in run.path.rglob("*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text()


def test_outcomes_survive_the_disk(run: RunDir) -> None:
    attempt = run.begin_attempt()
    assert run.outcome(attempt) is None
    outcome = Outcome(state=RunState.PREEMPTED, exit_code=85, cause="stopped", started=1.0, ended=2.0)
    run.write_outcome(attempt, outcome)
    assert RunDir(run.path).last_outcome() == outcome


def _begin(path: str) -> int:
    return RunDir(path).begin_attempt()


def test_two_submitters_never_share_an_attempt(run: RunDir) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        numbers = pool.map(_begin, [str(run.path)] * 12)
    assert sorted(numbers) == list(range(1, 13))


def test_an_older_attempt_may_not_write(run: RunDir) -> None:
    old = Fence(run, run.begin_attempt(), 1)
    old.claim()
    new = Fence(run, run.begin_attempt(), 1)
    new.claim()
    new.check()
    with pytest.raises(StaleAttemptError, match="attempt 1 was succeeded by 2"):
        old.check()
    with pytest.raises(StaleAttemptError):
        old.claim()


def test_an_older_group_of_the_same_attempt_may_not_write(run: RunDir) -> None:
    attempt = run.begin_attempt()
    old, new = Fence(run, attempt, 1), Fence(run, attempt, 2)
    old.claim()
    new.claim()
    with pytest.raises(StaleAttemptError, match="group 1"):
        old.check()
    new.check()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_atomically(target, "old")
    with pytest.raises(TypeError):
        write_atomically(target, 3)  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2')
    assert read_lines(path) == [{"step": 1}]


def test_whoever_is_second_leaves_no_trace(tmp_path: Path) -> None:
    """Not in the attempt that goes on either: a mark there would fence it off."""
    run = RunDir.create("x", {"config": {}}, tmp_path)
    first = run.begin_attempt()
    with pytest.raises(FileExistsError):
        begin_attempts([run.path], [{}], number=first)
    assert run.attempts() == [first]
    assert sorted(path.name for path in (run.path / "attempts").iterdir()) == ["0001"]
    Fence(run, first, 0).check()


def test_an_attempts_resources_are_its_own_or_those_of_the_record(tmp_path: Path) -> None:
    run = RunDir.create("x", {"config": {"retries": {"bugs": 5}}, "resources": {"nodes": "1..4"}}, tmp_path)
    assert run.resources().nodes.most == 4, "before any attempt"
    first = run.begin_attempt()
    second = run.begin_attempt(resources={"nodes": 2})
    assert [str(run.resources(number).nodes) for number in (first, second)] == ["1..4", "2"]
    assert str(run.resources().nodes) == "2", "the newest attempt's"
    assert (run.retries.bugs, run.retries.disturbances) == (5, 100)


def test_names_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is synced after a file has got its name, since syncing the file alone does not keep the name."""
    synced: list[tuple[str, set[str]]] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, {name for name in os.listdir(tmp_path) if not name.startswith(".")}))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(tmp_path / "outcome.json", "{}")
    assert synced[-1] == (str(tmp_path), {"outcome.json"})
    assert create_whole(tmp_path / "000001.json", "{}")
    assert synced[-1] == (str(tmp_path), {"outcome.json", "000001.json"})
    synced.clear()
    write_atomically(tmp_path / "progress.json", "{}", durable=False)
    assert synced == []
