"""Outcomes of attempts whose agents end in ways that a real allocation cannot produce on demand."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import EXIT_DONE, EXIT_REQUEUE
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import STOPPED_UNSAVED
from ropewalk.cluster.run.files import machine
from ropewalk.cluster.run.names import ENDED, NODES
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
from ropewalk.cluster.supervise.attempt import Attempt, stopped_unsaved
from ropewalk.cluster.supervise.supervisor import Supervisor
from tests.patience import Stopwatch


class Sleepers(Allocation):
    """An allocation whose agents are processes that never hear anything."""

    name = "sleepers"

    def __init__(self, nodes: int, agent: Sequence[str] = ("sleep", "60")) -> None:
        self._nodes, self.agent = range(nodes), agent

    def initial_nodes(self) -> list[int]:
        return list(self._nodes)

    def address(self, node: int) -> str:
        return "127.0.0.1"

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        return subprocess.Popen(self.agent)

    def end(self, process: Process) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()


class Deaf(Sleepers):
    """An allocation whose agents ignore stops."""

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        with stop_signals_blocked():
            return super().start(node, spec, log)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for agents that do not leave for a second in place of five."""
    monkeypatch.setattr("ropewalk.cluster.supervise.attempt.SETTLE_SECONDS", 1.0)


@pytest.mark.parametrize("nodes", [1, 2])
def test_agents_that_die_of_the_stop_itself_are_not_lost(tmp_path: Path, nodes: int) -> None:
    """Slurm hands the signal on also to the shell that has yet to become the agent."""
    resources = Resources.model_validate({"nodes": nodes})
    record = {"config": {}, "engine": "process", "resources": resources.model_dump(mode="json")}
    run = RunDir.create("x", record, tmp_path)
    number = run.begin_attempt()
    run.request_cancel()
    outcome = Attempt(run, number, Sleepers(nodes), retry_bugs=False).execute()
    assert outcome.state is RunState.CANCELLED
    assert not [event for event in run.read_events() if event["event"] == "node_lost"]


@pytest.mark.usefixtures("impatient")
def test_agents_that_do_not_leave_are_ended_when_the_notice_is_over(tmp_path: Path) -> None:
    """They count from when they hear of the stop, which may be late; a scheduler ends the job by its own clock, for good."""
    record = {"config": {}, "engine": "process", "resources": {"nodes": 1, "grace_seconds": 1.0}}
    run = RunDir.create("x", record, tmp_path)
    number = run.begin_attempt()
    run.request_cancel()
    watch = Stopwatch()
    outcome = Attempt(run, number, Deaf(1), retry_bugs=False).execute()
    assert watch.seconds < 30
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled before a new checkpoint was saved")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("code", "cause"), [(EXIT_REQUEUE, "cancelled after saving"), (EXIT_DONE, "done")])
def test_what_an_agent_has_reported_holds_when_it_is_ended(tmp_path: Path, code: int, cause: str) -> None:
    """The agent only waited for its sidecars: its saved state and its success count."""
    record = {"config": {}, "engine": "process", "resources": {"nodes": 1, "grace_seconds": 1.0}}
    run = RunDir.create("x", record, tmp_path)
    number = run.begin_attempt()
    run.request_cancel()
    report, content = run.attempt_dir(number) / NODES / "node-0.json", json.dumps({"node": 0, "exit_code": code})
    agent = ["sh", "-c", f"echo '{content}' > {report}; exec sleep 60"]
    outcome = Attempt(run, number, Deaf(1, agent), retry_bugs=False).execute()
    state = RunState.SUCCEEDED if code == EXIT_DONE else RunState.CANCELLED
    assert (outcome.state, outcome.cause) == (state, cause)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of one process."""
    return RunDir.create("x", {"config": {}, "engine": "process", "resources": {"nodes": 1}}, tmp_path)


def test_a_success_whose_event_cannot_be_written_stays_one(run: RunDir) -> None:
    number = run.begin_attempt()
    (run.events.folder / f"{machine()}.jsonl").symlink_to(run.path / "gone" / "file")
    assert Supervisor(run, Sleepers(1, ["true"]), sys.executable).supervise(number) == EXIT_DONE
    assert run.last_outcome().state is RunState.SUCCEEDED  # type: ignore[union-attr]


def test_an_outcome_that_is_written_is_not_replaced_by_what_fails_after_it(run: RunDir) -> None:
    number = run.begin_attempt()
    (run.attempt_dir(number) / ENDED).unlink()
    (run.attempt_dir(number) / ENDED).symlink_to(run.path / "gone" / "file")
    with pytest.raises(FileNotFoundError):
        Supervisor(run, Sleepers(1, ["true"]), sys.executable).supervise(number)
    assert run.last_outcome().state is RunState.SUCCEEDED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("events", "unsaved"),
    [
        (["stop_requested", STOPPED_UNSAVED], True),
        (["stop_requested", "checkpoint", STOPPED_UNSAVED], False),  # it committed one, and died of the signal all the same
        (["checkpoint", "stop_requested", STOPPED_UNSAVED], True),
        (["stop_requested"], False),
    ],
)
def test_a_program_that_committed_after_the_stop_has_saved(run: RunDir, events: list[str], unsaved: bool) -> None:
    number = run.begin_attempt()
    for event in events:
        run.event(event, attempt=number)
    assert stopped_unsaved(run, number) == unsaved
