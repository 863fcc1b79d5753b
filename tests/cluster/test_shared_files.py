"""Runs on a file system with NFS's habits: what two machines do and see, however old their caches are."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.fresh_reads import list_afresh, read_afresh
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.file_systems import mount_of
from ropewalk.cluster.run.files import append_line, parse_lines, read_lines, write_json
from ropewalk.cluster.run.succession import mark_succeeded, write_mark
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.storage import StoragePath
from ropewalk.cluster.supervise.supervisor import open_attempt
from ropewalk.jobs.results.metrics import MetricLog, broken_lines
from tests.fakes.nfs import Network, python_on

RECORD = {"job": "toy", "engine": "ranks", "config": {}, "resources": {"nodes": 1}}
EVENTS = """
import sys
from ropewalk.cluster.run.directory import RunDir
for number in range(200):
    RunDir(sys.argv[1]).event("said", number=number, words="x" * (number % 50))
"""


@pytest.fixture
def two(network: Network) -> tuple[RunDir, RunDir]:
    """One run as two machines see it, after both have listed all of it."""
    here, there = network.client(), network.client()
    run = RunDir.create("shared", RECORD, here)
    return run, RunDir(there / run.id)


def look_at(run: RunDir) -> None:
    """Fill the caches of a machine with how things are now."""
    for folder, _, names in os.walk(run.path):
        for name in names:
            (Path(folder) / name).stat()
    run.last_outcome()
    assert not run.cancel_requested


def test_two_machines_record_events_at_the_same_time(two: tuple[RunDir, RunDir]) -> None:
    writers = [python_on(f"n{i}", EVENTS, str(run.path)) for i, run in enumerate(two)]
    assert [writer.wait() for writer in writers] == [0, 0]
    result = two[0].read_events(afresh=True)
    assert len(result) == 400
    assert [event["time"] for event in result] == sorted(event["time"] for event in result)


def test_an_older_attempt_sees_its_successor_at_once(two: tuple[RunDir, RunDir]) -> None:
    here, there = two
    old = Fence(there, there.begin_attempt(), 1)
    old.claim()
    look_at(there)
    assert here.begin_attempt() == 2
    with pytest.raises(StaleAttemptError, match="attempt 1 was succeeded by 2"):
        old.check()
    assert there.attempts() == [1, 2]


def test_an_older_group_sees_its_successor_at_once(two: tuple[RunDir, RunDir]) -> None:
    here, there = two
    attempt = there.begin_attempt()
    old, skipped = Fence(there, attempt, 1), Fence(there, attempt, 2)
    old.claim()
    look_at(there)
    Fence(here, attempt, 4).claim()
    for fence in (old, skipped):
        with pytest.raises(StaleAttemptError, match="was succeeded by 4"):
            fence.check()
    with pytest.raises(StaleAttemptError):
        skipped.claim()


def test_whoever_was_told_last_matters_not(tmp_path: Path) -> None:
    """One that claims late may not undo what a newer one has said."""
    marks: Callable[[int], Path] = lambda number: tmp_path / str(number)  # noqa: E731
    mark_succeeded(marks, 3, first=1)
    mark_succeeded(marks, 5, first=1)
    write_mark(marks(1), 2)
    assert all(read_afresh(marks(number)) for number in range(1, 5))
    assert not read_afresh(marks(5))


def test_two_machines_never_open_the_same_attempt(two: tuple[RunDir, RunDir]) -> None:
    here, there = two
    for run in (here, there):
        assert run.attempts() == []
    assert [run.begin_attempt() for run in (here, there, here, there, there)] == [1, 2, 3, 4, 5]
    assert here.attempts() == there.attempts() == [1, 2, 3, 4, 5]


def test_a_requeue_on_another_machine_goes_on_from_the_newest_attempt(two: tuple[RunDir, RunDir]) -> None:
    here, there = two
    here.make_folders(here.begin_attempt())
    look_at(there)
    here.write_outcome(1, Outcome(state=RunState.PREEMPTED, exit_code=85, cause="preempted"))
    here.begin_attempt(opened_by="retry")
    append_line(here.attempt_dir(2) / "agents.jsonl", {"node": 0, "started": 0.0})
    assert open_attempt(there, "it died") == 3
    assert [there.outcome(number).cause for number in (1, 2)] == ["preempted", "it died"]  # type: ignore[union-attr]


def test_an_outcome_and_a_cancellation_are_seen_at_once(two: tuple[RunDir, RunDir]) -> None:
    here, there = two
    attempt = there.begin_attempt()
    there.make_folders(attempt)
    for run in two:
        look_at(run)
    here.request_cancel()
    here.request_nodes(3)
    assert there.cancel_requested
    assert there.wanted_nodes == 3
    here.withdraw_cancel()
    assert not there.cancel_requested
    there.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    assert here.last_outcome().state is RunState.SUCCEEDED  # type: ignore[union-attr]


def test_the_metrics_go_on_on_another_machine(two: tuple[RunDir, RunDir]) -> None:
    """All bytes of the old writer are kept, and half a line that it left is ended."""
    here, there = two
    MetricLog(JobContext(run=here, attempt=here.begin_attempt())).log(1, {"a": 1})
    look_at(there)
    MetricLog(JobContext(run=here, attempt=1)).log(2, {"a": 2})
    with here.metrics.open("a") as stream:
        stream.write('{"step": 3, "att')
    MetricLog(JobContext(run=there, attempt=there.begin_attempt())).log(3, {"a": 3})
    for run in two:
        assert [(line["step"], line["attempt"]) for line in run.read_metrics()] == [(1, 1), (2, 1), (3, 2)]
    assert broken_lines(here) == {"metrics.jsonl": 1}


def test_names_that_were_missing_a_moment_ago_are_seen(network: Network) -> None:
    here, there = StoragePath(network.client()), StoragePath(network.client())
    assert there.names() == []
    assert not there.exists("step-1/manifest.json")
    here.write("step-1/manifest.json", b"{}")
    assert not there.exists("step-1/manifest.json"), "NFS's habit"
    there.make("step-1")
    assert there.exists_afresh("step-1/manifest.json")
    assert there.read("step-1/manifest.json") == b"{}"
    assert not there.exists_afresh("step-1/other.json")
    assert there.names("step-1") == ["manifest.json"]
    assert list_afresh(there.local or Path()) == ["step-1"]


# --- lines that cannot be read, on any file system


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which may write in folders of other users")
def test_root_leaves_no_file_in_a_folder_of_the_pods_user(tmp_path: Path) -> None:
    (tmp_path / "attempt").mkdir()
    assert read_afresh(tmp_path / "attempt/mine") == b""
    os.chown(tmp_path / "attempt", 1000, 1000)
    assert read_afresh(tmp_path / "attempt/theirs") == b""
    assert os.listdir(tmp_path / "attempt") == ["mine"]


def test_a_broken_line_is_left_out_and_counted(tmp_path: Path) -> None:
    lines = [
        b'{"event": "a", "time": 1}',
        b'{"event": "b", "ti{"event": "c"}',
        b"\x00\xff\x00",
        b"12",
        b'{"event": "d", "time": 2}',
    ]
    result, broken = parse_lines(b"\n".join([*lines, b'{"cut']))
    assert [line["event"] for line in result] == ["a", "d"]
    assert broken == 3
    run = RunDir.create("broken", RECORD, tmp_path)
    run.event("good")
    (run.events.folder / "other.jsonl").write_bytes(b"\n".join([*lines, b'{"half": 1}', b""]))
    assert [event["event"] for event in run.read_events()] == ["a", "d", "good"]


def test_a_mark_with_the_zeros_of_a_power_cut_is_a_mark(tmp_path: Path) -> None:
    run = RunDir.create("marked", RECORD, tmp_path)
    fence = Fence(run, run.begin_attempt(), 0)
    run.make_folders(1)
    fence.check()
    (run.attempt_dir(1) / "successor").write_bytes(b"\0\0x")
    with pytest.raises(StaleAttemptError):
        fence.check()
    assert run.attempts() == [1]


def test_the_file_system_is_named(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
        "2 1 0:5 / /net rw,relatime - autofs home rw\n"
        "3 1 0:5 / /net rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2,nocto,acregmax=60\n"
        "4 1 0:6 / /net/my\\040disk rw - lustre mgs@tcp:/fs rw,flock\n"
    )
    assert mount_of(Path("/netto"), mounts).kind == "ext4"
    assert mount_of(Path("/net/runs"), mounts).kind == "nfs4"
    assert {"nocto", "rw"} <= mount_of(Path("/net/runs"), mounts).options
    assert mount_of(Path("/net/my disk/not there"), mounts).kind == "lustre"
    assert mount_of(tmp_path, tmp_path / "none").kind == ""


def test_what_is_not_durable_is_whole_all_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1}, durable=False)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert read_lines(tmp_path / "none.jsonl") == []
