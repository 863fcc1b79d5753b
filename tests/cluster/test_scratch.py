"""Cleaning of the temporary directory at a start: leftovers of killed processes go, files in use stay."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.process.scratch import OWNER, machine, make_scratch, remove_scratch, scratch, sweep
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import details
from tests.cluster.conftest import ROOT, ToyRun
from tests.patience import Patience, until

OWNING = """
import sys
from ropewalk.cluster.process.scratch import keep, make_scratch
from pathlib import Path
if sys.argv[2] == "keep":
    keep(Path(sys.argv[1]))
    print("kept", flush=True)
else:
    print(make_scratch("x", sys.argv[1]), flush=True)
sys.stdin.read()
"""


def owner(folder: Path, verb: str = "make") -> tuple["subprocess.Popen[str]", Path]:
    """A process with a folder in `place`, or one that keeps `place`."""
    command = [sys.executable, "-c", OWNING, str(folder), verb]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: "subprocess.Popen[str]") -> None:
    with process:
        process.kill()


def test_a_folder_goes_once_nobody_owns_it_any_more(tmp_path: Path) -> None:
    process, folder = owner(tmp_path)
    (folder / "inner").mkdir()
    (folder / "inner" / "file").touch()
    mine = make_scratch("x", tmp_path)
    assert folder.is_dir(), "its owner lives"
    kill(process)
    stranger = tmp_path / "x12345678"  # as any program might make it
    stranger.mkdir()
    with_link = make_scratch("x", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, stranger, with_link])
    remove_scratch(mine)
    remove_scratch(with_link)
    assert list(tmp_path.iterdir()) == [stranger]


def test_a_folder_stays_as_long_as_another_process_needs_it_or_lies_in_it(tmp_path: Path) -> None:
    process, folder = owner(tmp_path)
    keeping, _ = owner(folder, "keep")
    (folder / "n0").mkdir()
    inside, inner = owner(folder / "n0")
    kill(process)
    assert sweep(tmp_path) == 0
    kill(keeping)
    assert sweep(tmp_path) == 0
    assert inner.is_dir()
    kill(inside)
    assert sweep(tmp_path) == 1
    assert not folder.exists()


def test_what_another_machine_or_another_user_owns_is_left_alone(tmp_path: Path) -> None:
    for name, text in (("xaaaaaaaa", "another boot"), ("xbbbbbbbb", machine())):
        (tmp_path / name).mkdir()
        (tmp_path / name / OWNER).write_text(text)
    if os.geteuid() == 0:
        os.chown(tmp_path / "xbbbbbbbb", 12345, 12345)
    link = tmp_path / "xcccccccc"
    link.symlink_to(tmp_path / "xbbbbbbbb")
    assert sweep(tmp_path) == (os.geteuid() != 0)
    assert (tmp_path / "xaaaaaaaa" / OWNER).exists()
    assert link.is_symlink()


def test_what_a_killed_process_could_not_finish_removing_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, folder = owner(tmp_path)
    (folder / "inner").mkdir()
    kill(process)
    monkeypatch.setattr("ropewalk.cluster.process.scratch.shutil.rmtree", lambda *_, **__: os.kill(os.getpid(), 0))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is away")))
    assert sweep(tmp_path) == 0
    monkeypatch.undo()
    assert sweep(tmp_path) == 1
    assert not folder.exists()


def test_a_block_s_folder_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("o") as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk(toy: Callable[..., ToyRun]) -> Path:
    """The temporary directory of toy runs."""
    return Path(os.environ["TMPDIR"])


def supervised(disk: Path, run: ToyRun, attempt: int) -> list[Path]:
    """Wait until an attempt is at work; the folders that are there then."""
    until(lambda: any(line["attempt"] == attempt for line in run.run.read_metrics()), Patience.STEP)
    return sorted(disk.iterdir())


def test_a_killed_supervisor_and_agent_leave_nothing(toy: Callable[..., ToyRun], disk: Path) -> None:
    run = toy("tick", "process", steps=100_000, pause=0.02)
    for attempt in (1, 2):
        before = supervised(disk, run, attempt)
        assert len(before) == 1
        (agent,) = read_lines(run.run.attempt_dir(attempt) / "agents.jsonl")
        os.kill(run.supervisor().pid, signal.SIGKILL)  # at once, so that the supervisor cannot see its agent go
        os.kill(agent["pid"], signal.SIGKILL)
        until(lambda: run.state.word == "lost", Patience.SIGNAL)
        until(lambda: not processes_of(disk), Patience.SIGNAL)
        assert sorted(disk.iterdir()) == before
        assert details(run.run)["attempt_list"][-1]["state"] == "UNKNOWN"
        run.handle = LocalBackend.submit(run.backend, run.run, run.resources)
    after = supervised(disk, run, 3)
    assert len(after) == 1
    assert after != before, "only what the living supervisor has"
    listed = details(run.run)["attempt_list"]
    assert [record["state"] for record in listed] == ["REQUEUED", "REQUEUED", "RUNNING"]
    assert listed[0]["cause"].startswith("its supervisor was killed")
    messages = [event["cause"] for event in run.run.read_events() if event["event"] == "attempt_ended"]
    assert len(messages) == 2
    assert messages[0] == listed[0]["cause"]
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
