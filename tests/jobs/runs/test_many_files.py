"""Reading of runs with many nodes and a long history: bytes and files read stay bounded."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import Mount
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.open_runs import open_runs
from ropewalk.jobs.runs.show.status import details, find_run, is_final
from ropewalk.jobs.runs.show.top import rows
from ropewalk.jobs.runs.space.remove import delete
from tests.jobs.shell import Shell

NODES, NODE_BYTES, METRICS_BYTES = 64, 1 << 20, 8 << 20
MOST_BYTES = 2 << 20  # 64 tails of samples, and some of metrics and events
RUNNING = BackendState(state=RunState.RUNNING)


def bytes_read() -> int:
    """Return the bytes that this process has read with system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def long_run(shell: Shell) -> RunDir:
    run = RunDir.create("long", {"job": "pretrain", "config": {}, "cluster": "slow", "resources": {}}, shell.home / "runs")
    for attempt in (1, 2):
        run.begin_attempt()
        line = json.dumps({"time": 1.0, "node": 0, "cpu_percent": 55.0, "memory_used_gib": 3.25, "padding": 400 * "x"}) + "\n"
        for node in range(NODES if attempt == 2 else 8):
            path = run.attempt_dir(attempt) / f"nodes/node-{node}.jsonl"
            path.write_text((line * (NODE_BYTES // len(line))).replace('"node": 0', f'"node": {node}'))
    step = json.dumps({"step": 7, "attempt": 2, "time": 1.0, "train/loss": 2.5}) + "\n"
    run.metrics.write_text(step * (METRICS_BYTES // len(step)) + "damaged\n")
    return run


def test_show_why_and_top_read_the_ends_of_files(long_run: RunDir) -> None:
    assert NODES * NODE_BYTES > 30 * MOST_BYTES
    before = bytes_read()
    values = details(long_run)
    assert (values["broken_lines"], values["metrics"]["train/loss"]) == ({"metrics.jsonl": 1}, 2.5)
    assert bytes_read() - before < MOST_BYTES
    before = bytes_read()
    assert "skipped unreadable lines: 1 of metrics.jsonl (power loss" in " ".join(diagnose(long_run, RUNNING).evidence)
    assert bytes_read() - before < MOST_BYTES
    before = bytes_read()
    (row,) = rows()
    assert [sample["node"] for sample in sorted(row["node_samples"], key=lambda each: each["node"])] == list(range(NODES))
    assert bytes_read() - before < MOST_BYTES


def test_a_hang_is_reported_with_the_ranks_of_all_nodes(tmp_path: Path) -> None:
    run = RunDir.create("x", {"job": "pretrain", "config": {}, "resources": {}}, tmp_path)
    run.begin_attempt()

    def ranks(node: int) -> list[dict[str, Any]]:
        where = "all_reduce in sum (group.py:40)" if node else "read in fetch (loader.py:7)"  # node 0, the first to report
        return [{"rank": 8 * node + gpu, "where": where, "phase": "step", "state": "sleeping"} for gpu in range(8)]

    for node in range(300):
        run.event("ranks_hung", attempt=1, group=1, node=node, step=4, seconds=2.0, ranks=ranks(node), stacks="stacks")
    (line,) = diagnose(run, RUNNING).evidence
    assert "2392 ranks in all_reduce in sum (group.py:40), 8 ranks in read in fetch (loader.py:7)" in line
    (event,) = details(run)["events"]
    assert sorted(rank["rank"] for rank in event["ranks"]) == list(range(2400))


def make_runs(root: Path, num_runs: int) -> list[RunDir]:
    """Make runs that ended long ago."""
    root.mkdir(exist_ok=True)
    runs = []
    for number in range(num_runs):
        folder = root / f"many-20250101-{number:06d}-abcd"
        folder.mkdir()
        (folder / "run.yaml").write_text(f"run: {folder.name}\njob: pretrain\ncluster: slow\nconfig: {{}}\n")
        os.utime(folder / "run.yaml", (number, number))
        runs.append(RunDir(folder))
        end(runs[-1], runs[-1].begin_attempt(), RunState.SUCCEEDED)
    return runs


def end(run: RunDir, attempt: int, state: RunState) -> None:
    run.write_outcome(attempt, Outcome(state=state, exit_code=0, cause="done", ended=1.0))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "runs"


def open_ids(root: Path) -> tuple[list[str], int]:
    """Return the ids of the runs that a listing takes for open after it has read their outcomes, and the number of the others."""
    runs, num_others = open_runs([root])
    ids = [run.id for run in runs if (run.attempt_dir(1) / "outcome.json").read_text() == "{" or not is_final(run)]
    return ids, num_others + len(runs) - len(ids)


def test_the_second_listing_opens_no_file_of_ended_runs(root: Path) -> None:
    runs = make_runs(root, 300)
    assert open_ids(root) == ([], 300)
    before = bytes_read()
    assert open_runs([root]) == ([], 300)
    assert bytes_read() - before < 300 * 80, "only the cache and the list of mounts"
    runs[7].begin_attempt()
    runs[250].begin_attempt()
    assert open_ids(root) == ([runs[7].id, runs[250].id], 298)
    end(runs[7], 2, RunState.PREEMPTED)
    end(runs[250], 2, RunState.FAILED)
    assert open_ids(root) == ([runs[7].id], 299), "another attempt follows the preemption"
    runs[250].begin_attempt()
    delete(runs[3].path)
    assert open_ids(root) == ([runs[7].id, runs[250].id], 297)


def test_later_attempts_are_listed_once_they_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(root, 150)
    assert open_ids(root) == ([], 150)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the first note is checked, and no other
    looked_at = []
    access = os.access
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: looked_at.append(str(path)) or access(path, mode))
        assert open_runs([root]) == ([], 150)
    assert len(looked_at) == 3, "one in 64 notes"
    assert not (root / ".attempts").exists(), "no run has gone on"
    runs[30].begin_attempt()
    assert (root / ".attempts").stat().st_mode & 0o1777 == 0o1777
    assert open_ids(root) == ([runs[30].id], 149)
    end(runs[30], 2, RunState.FAILED)
    assert open_ids(root) == ([], 150)
    for _ in range(3):
        runs[31].begin_attempt()
    assert open_ids(root) == ([runs[31].id], 149)


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(root, 150)
    runs[5].begin_attempt()
    expected = ([runs[5].id], 149)
    assert open_ids(root) == expected
    (cache,) = (root.parent / "cache").rglob("*.json")
    for content in ("", '{"many', "[1]", '{"a": "b"}', '[{"a": "b"}, {}]', "[1, 2]"):
        cache.write_text(content)
        assert open_ids(root) == expected
    (root.parent / "file").touch()
    monkeypatch.setenv("ROPEWALK_CACHE", str(root.parent / "file"))
    assert open_ids(root) == expected


def test_outcomes_of_the_last_minute_are_read_again(root: Path) -> None:
    (run, *_) = make_runs(root, 150)
    run.write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="lost, says the scheduler", ended=time.time()))
    assert open_ids(root) == ([], 150)
    run.write_outcome(1, Outcome(state=RunState.REQUEUED, exit_code=85, cause="saved and stopped", ended=time.time()))
    assert open_ids(root) == ([run.id], 149)


def test_damaged_runs_are_listed_with_the_open_ones(root: Path) -> None:
    runs = make_runs(root, 3)
    (runs[1].attempt_dir(1) / "outcome.json").write_text("{")
    assert open_ids(root) == ([runs[1].id], 2)


def test_the_latest_run_and_prefixes_are_found_without_looking_at_all(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shell.home / "runs"
    runs = make_runs(root, 200)
    newest = RunDir.create("many", {"job": "pretrain", "config": {}, "cluster": "slow"}, root)
    looked_at = []
    stat = os.stat
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path, *args, **kwargs: looked_at.append(str(path)) or stat(path, *args, **kwargs))
        assert find_run("latest").id == newest.id
        assert find_run(runs[123].id[:-3]).id == runs[123].id
    assert 0 < sum("many-" in path for path in looked_at) < 20
    delete(newest.path)
    assert find_run("latest").id == runs[-1].id
    by_hand = root / "by-hand"
    runs[3].path.rename(by_hand)
    os.utime(by_hand / "run.yaml", (500, 500))
    assert [run.id for run in RunDir.newest_first(root)][:2] == ["by-hand", runs[-1].id]
    assert [run.id for run in RunDir.newest_first(root)] == [run.id for run in reversed(RunDir.all(root))]


def test_on_a_network_file_system_the_mark_of_a_later_attempt_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(root, 150)
    assert open_ids(root) == ([], 150)
    monkeypatch.setattr("ropewalk.jobs.runs.show.open_runs.mount_of", lambda path: Mount("nfs4"))
    runs[9].begin_attempt()  # on another machine; this one does not see attempts/0002 yet
    runs[9].attempt_dir(2).rename(root / "elsewhere")
    assert open_ids(root) == ([runs[9].id], 149)
