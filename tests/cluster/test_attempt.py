"""What becomes of an attempt whose agents end in a way that no real allocation can be made to show at will."""

import signal
import subprocess
from pathlib import Path

import pytest

from cluster.config import Resources
from cluster.process.forking import Process
from cluster.run.directory import RunDir
from cluster.spec import RunState
from cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from cluster.supervise.attempt import Attempt


class Sleepers(Allocation):
    """An allocation whose agents are processes that never hear anything."""

    name = "sleepers"

    def __init__(self, nodes: int) -> None:
        self._nodes = range(nodes)

    def initial_nodes(self) -> list[int]:
        return list(self._nodes)

    def address(self, node: int) -> str:
        return "127.0.0.1"

    def free_port(self) -> int:
        return 1  # no agent that this allocation starts meets another

    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Process:
        return subprocess.Popen(["sleep", "60"])

    def end(self, process: Process) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def loss_reason(self, node: int, code: int) -> str:
        return f"killed by signal {-code}"


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
