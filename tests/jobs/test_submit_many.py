"""Many runs in one submission: which they are, what one request costs, and a queue of them on this machine."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.backends.base import Profile
from cluster.backends.local.backend import LocalBackend
from cluster.config import Resources
from cluster.errors import ConfigError
from cluster.process.kill import processes_of
from cluster.run.directory import RunDir
from cluster.run.files import append_line, read_json, read_lines, write_all
from cluster.run.record import dump_record, read_listed, read_record
from cluster.spec import RunState
from jobs.runs.combinations import combinations
from jobs.runs.submit import resume
from jobs.runs.tables import LONG_LIST
from tests.jobs.shell import Shell, pretrain
from tests.patience import Patience, until

ROOT = Path(__file__).parents[2]

# --- which runs


def test_combinations_are_the_product_in_order() -> None:
    assert combinations([]) == [()]
    assert combinations(["seed=8..10"]) == [("seed=8",), ("seed=9",), ("seed=10",)]
    assert combinations(["a.x=1e-3,1e-4", "b=[yes, 'no']"]) == [
        ("a.x=0.001", "b=true"),
        ("a.x=0.001", 'b="no"'),
        ("a.x=0.0001", "b=true"),
        ("a.x=0.0001", 'b="no"'),
    ]
    assert combinations(["betas=[0.9, 0.95],[0.8, 0.9]"]) == [("betas=[0.9, 0.95]",), ("betas=[0.8, 0.9]",)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed"], "write KEY=VALUES"),
        (["seed="], "write KEY=VALUES"),
        (["seed=[]"], "no values"),
        (["seed=9..1"], "write 1..9"),
        (["seed=1,[2"], "not YAML"),
        (["seed=1,2", "seed=3"], "twice"),
        (["seed=1..100000000000"], "100,000,000,000 values"),
        (["seed=1..1000", "steps=1..1000"], "1,000,000 runs"),
        (["resources.nodes=1..4"], "share their resources"),
        (["--seed=1,2"], "without dashes"),
    ],
)
def test_combinations_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combinations(words)


def test_a_run_a_combination_created_and_submitted_together(shell: Shell) -> None:
    words = ("--each", "seed=3,5", "--each", "optim.lr=1e-3,1e-4", "--at-once", "2", "--after")
    first = shell("submit", *pretrain("--on", "good")).strip()
    ids = shell("submit", *pretrain("--on", "slow", *words, first)).splitlines()
    records = [RunDir(shell.home / "runs" / i).record for i in ids]
    made = [(record["config"]["seed"], record["config"]["optim"]["lr"]) for record in records]
    assert made == [(3, 1e-3), (3, 1e-4), (5, 1e-3), (5, 1e-4)]
    assert shell.asked("submit_many") == [{"verb": "submit_many", "runs": ids, "after": [first], "at_once": 2}]
    rows = json.loads(shell("ps", "--json"))
    assert [row["run"] for row in rows] == ids
    assert rows[2]["handle"] == "fake:1_2"
    assert len(shell.asked("states")) == 1


def test_a_mistake_creates_nothing(shell: Shell) -> None:
    assert "seed" in shell.mistake("submit", *pretrain("--on", "slow", "--each", "seed=1,2,x"))
    assert "sed" in shell.mistake("submit", *pretrain("--on", "slow", "--each", "sed=1,2"))
    assert "nowhere does not exist" in shell.mistake(
        "submit", "pretrain", "steps=3", "--on", "slow", "--each", "data=data,nowhere"
    )
    assert not (shell.home / "runs").exists()


def test_a_dry_run_shows_one_and_counts_the_rest(shell: Shell) -> None:
    lines = shell("submit", *pretrain("--on", "slow", "--each", "seed=1..1000", "--dry-run")).splitlines()
    assert (lines[0], lines[-1]) == ("#!/bin/bash", "# and 999 more")
    assert not (shell.home / "runs").exists()


def test_a_refusal_is_noted_in_every_run(shell: Shell) -> None:
    shell("submit", *pretrain("--on", "closed", "--each", "seed=1..3"), expect=1)
    runs = RunDir.all(shell.home / "runs")
    assert [run.read_events()[0]["event"] for run in runs] == ["submit_failed"] * 3


# --- what it costs


class Calls:
    """How often the operating system was asked for something while a body ran."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.on = False
        sys.addaudithook(self._note)  # stays for ever, so it is switched

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in {"open", "os.mkdir", "subprocess.Popen", "os.listdir", "os.scandir"}:
            name = os.path.basename(str(arguments[0])) if event == "open" else event
            self.counts[name] = self.counts.get(name, 0) + 1

    def of(self, body: Callable[[], Any]) -> dict[str, int]:
        self.counts, self.on = {}, True
        try:
            body()
        finally:
            self.on = False
        return self.counts


def test_the_cost_of_a_run_among_many(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what a disk takes is not ours
    shell("submit", *pretrain("--on", "shipping"))  # writes the copy of the code, which the others find
    few, many = (
        calls.of(lambda n=n: shell("submit", *pretrain("--on", "shipping", "--each", f"seed=1..{n}"))) for n in (10, 310)
    )
    assert (many["os.mkdir"] - few["os.mkdir"]) / 300 < 3.1, "an id that is taken costs one more"
    assert many["subprocess.Popen"] <= 8, "git and versions are asked once for all"
    assert (sum(many.values()) - sum(few.values())) / 300 <= 10
    before = time.process_time()
    listing = calls.of(lambda: shell("ps"))
    assert time.process_time() - before < 3, "a few milliseconds a run even on a slow machine"
    assert len(shell.out.splitlines()) > 321
    assert listing["run.yaml"] == 321
    assert listing["attempt.json"] == 321
    assert sum(listing.values()) / 321 <= 12


def test_a_long_list_is_a_line_a_run(shell: Shell) -> None:
    ids = shell("submit", *pretrain("--on", "slow", "--each", f"seed=0..{LONG_LIST}")).splitlines()
    lines = shell("ps").splitlines()
    assert lines[0].split()[:3] == ["RUN", "JOB", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ids
    assert {tuple(line.split()[1:3]) for line in lines[1:]} == {("pretrain", "RUNNING")}


# --- run.yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["steps", "nodes", "name", "data"])


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {
                "job": st.text(max_size=9),
                "config": st.dictionaries(KEYS, PLAIN),
                "resources": st.dictionaries(KEYS, PLAIN),
                "cluster": PLAIN,
                "created": st.floats(0, 1e10),
                "code": PLAIN,
            }
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_record_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    path, known = tmp_path_factory.getbasetemp() / "record.yaml", dict[Any, str]()
    for record in records:
        path.write_text(dump_record("x", record, known))
        assert read_record(path) == {"run": "x", **record}
        listed = read_listed(path)
        assert listed is not None
        assert (listed["job"], listed["cluster"], listed["created"]) == (record["job"], record["cluster"], record["created"])
        assert listed["config"].get("steps") == record["config"].get("steps")
        assert listed["resources"].get("nodes") == record["resources"].get("nodes")


def test_a_long_diff_is_not_read_for_a_list(tmp_path: Path) -> None:
    listed = {"job": "a", "config": {"steps": 3}, "resources": {"nodes": 2}, "cluster": "c", "created": 1.5}
    run = RunDir.create("x", {**listed, "code": {"diff": "+line\n" * 100_000}}, tmp_path)
    assert RunDir(run.path).listed == listed
    late = RunDir.create("x", {"code": {"diff": "+line\n" * 100_000}, **listed}, tmp_path)
    assert RunDir(late.path).listed["config"] == {"steps": 3}, "found further down"
    (run.path / "run.yaml").write_text(json.dumps(listed))
    assert RunDir(run.path).listed == listed, "a person may write it in any way"
    assert yaml.safe_load((late.path / "run.yaml").read_text())["run"] == late.id


def test_many_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_all({tmp_path / "a": "new", tmp_path / "nowhere/b": "new"})
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- on this machine


def process_of(run: RunDir, name: str) -> psutil.Process:
    return psutil.Process(int((read_json(run.path / name) or {})["pid"]))


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Submission:
    """Five runs of an entry that waits for a file, two at a time."""

    def __init__(self, root: Path) -> None:
        self.gate = root / "gate"
        self.backend, self.resources = LocalBackend(Profile(name="local", backend="local")), Resources()
        record = {
            "job": "pretrain",
            "entry": "tests.jobs.test_submit_many:wait_for_the_gate",
            "engine": "process",
            "preload": [],
            "sidecars": [],
            "config": {"gate": str(self.gate)},
            "resources": {"nodes": 1},
            "cluster": "local",
        }
        self.runs = RunDir.create_all(["gated"] * 5, [record] * 5, root / "runs")

    def start(self) -> None:
        self.handles = self.backend.submit_many(self.runs, self.resources, at_once=2)

    def states(self) -> list[RunState]:
        found = self.backend.states(self.runs)
        return [found[run.id].state for run in self.runs]

    def words(self) -> list[str]:
        found = self.backend.states(self.runs)
        return [found[run.id].word for run in self.runs]

    def started(self) -> int:
        return sum((run.path / "here").exists() for run in self.runs)


def wait_for_the_gate(context: Any) -> dict[str, object]:
    """An entry: note how many are at work, and return when the gate is there."""
    (context.run.path / "here").touch()
    while not Path(context.run.record["config"]["gate"]).exists():
        time.sleep(0.02)
    mates = [RunDir(path) for path in context.run.path.parent.iterdir()]
    at_work = sum((mate.path / "here").exists() and mate.results() == {} for mate in mates)
    append_line(context.run.path.parent.parent / "at-work", {"count": at_work})
    return {"done": True}


@pytest.fixture
def submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submission]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Submission(tmp_path)
    yield made
    made.gate.touch()
    for process in processes_of(tmp_path):
        process.kill()
    until(lambda: not processes_of(tmp_path), Patience.START)


def test_a_queue_runs_a_few_at_a_time_and_cancels_what_waits(submission: Submission, tmp_path: Path) -> None:
    submission.start()
    assert len(set(submission.handles)) == 1
    until(lambda: submission.started() == 2)
    until(lambda: submission.states()[:2] == [RunState.RUNNING] * 2)
    assert submission.states()[2:] == [RunState.PENDING] * 3
    last = submission.runs[-1]
    assert "2 of its submission at a time" in submission.backend.states([last])[last.id].reason
    submission.backend.cancel(last)
    until(lambda: submission.states()[-1] is RunState.CANCELLED)
    assert (last.last_outcome() or {}).cause == "cancelled before it started"
    assert submission.started() == 2
    queue = process_of(submission.runs[0], "queue-process.json")
    submission.gate.touch()
    until(lambda: submission.states()[:4] == [RunState.SUCCEEDED] * 4)
    assert max(line["count"] for line in read_lines(tmp_path / "at-work")) <= 2
    until(lambda: gone(queue))


def test_a_killed_queue_leaves_what_ps_names_and_resume_mends(submission: Submission) -> None:
    submission.start()
    until(lambda: submission.started() == 2)
    process_of(submission.runs[0], "queue-process.json").send_signal(signal.SIGKILL)
    until(lambda: submission.words()[2:] == ["lost"] * 3)
    third = submission.runs[2]
    assert "the process that would have started it died" in submission.backend.states([third])[third.id].reason
    assert f"ropewalk resume {third.id}" in submission.backend.states([third])[third.id].reason
    submission.gate.touch()
    until(lambda: submission.states()[:2] == [RunState.SUCCEEDED] * 2)  # what was at work goes on
    resume(third)
    until(lambda: submission.states()[2] is RunState.SUCCEEDED)
    assert third.attempts() == [1, 2]


def test_a_queue_asked_to_leave_lets_its_runs_leave(submission: Submission) -> None:
    submission.start()
    until(lambda: submission.started() == 2)
    supervisors = [process_of(run, "supervisor.json") for run in submission.runs[:2]]
    process_of(submission.runs[0], "queue-process.json").terminate()
    submission.gate.touch()
    until(lambda: all(gone(process) for process in supervisors))
    until(lambda: submission.words()[2:] == ["lost"] * 3)  # the queue leaves last
    assert submission.started() == 2
