"""Interface of an allocation, the nodes on which a supervisor starts agents."""

import signal
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import Process


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """Arguments of one node's agent. A backend that starts it over the network sends these fields, never a command line."""

    run_path: str
    attempt: int
    node: int
    nodes: str  # number of nodes of the attempt: `2`, or `1..4` for an elastic run
    address: str  # at which the other nodes reach this one
    python: str = sys.executable  # on the node

    def command(self) -> list[str]:
        command = module_command("ropewalk.cluster.agent", self.run_path, python=self.python)
        command += ["--attempt", str(self.attempt), "--node", str(self.node)]
        return [*command, "--nodes", self.nodes, "--address", self.address]


@dataclass(frozen=True, kw_only=True)
class GroupServerSpec:
    """Arguments of the process that forms an attempt's groups of ranks; it runs beside the supervisor."""

    run_path: str
    attempt: int
    nodes: str  # number of nodes of a group
    expected: int  # nodes that will be ready soon
    host: str  # at which it listens
    term: int = 1  # a server that takes over from another one in the same attempt has a higher term
    python: str = sys.executable

    def command(self) -> list[str]:
        command = module_command("ropewalk.cluster.engines.group_server", self.run_path, python=self.python)
        command += ["--attempt", str(self.attempt), "--nodes", self.nodes, "--expected", str(self.expected)]
        return [*command, "--host", self.host, "--term", str(self.term)]


class Allocation(ABC):
    """Nodes that a backend allocates to a run, numbered from 0. By default no node joins, and none is taken back."""

    name: str  # of the backend
    survivors: int = 0  # nodes whose agents go on in the present attempt, although the supervisor that started them has died
    owner_limits_time: bool = False  # the scheduler enforces the time limit; False: the supervisor does

    @abstractmethod
    def initial_nodes(self) -> list[int]:
        """Return the nodes that an attempt starts with."""

    @abstractmethod
    def address(self, node: int) -> str:
        """Return the host name or address at which the other nodes reach `node`."""

    def server_host(self) -> str:
        """Return the host name or address at which the group server listens."""
        return self.address(0)

    def running_agent(self, node: int) -> Process | None:
        """Return the agent of the present attempt that another supervisor started on a node, which goes on; else None."""
        return None

    def confirm(self) -> None:  # noqa: B027 by default a run has one supervisor
        """End this process if another supervisor has taken over. Called before an attempt is concluded."""

    @abstractmethod
    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        """Start an agent or group server on a node, with stop signals blocked until it installs a handler.

        SIGUSR2 sent to the returned process reaches the agent; killing the returned process ends the agent.
        """

    @abstractmethod
    def end(self, process: Process) -> None:
        """Kill a process that `start` or `start_group_server` started, and its descendants."""

    def start_group_server(self, spec: GroupServerSpec, log: Path) -> Process:
        """Start the group server; it must outlive the agents."""
        return self.start(0, spec, log)

    def loss_reason(self, node: int, code: int) -> str:
        """Return the reason why `node` counts as lost, empty if it does not; its agent exited with `code` without a report."""
        return signal.Signals(-code).name if code < 0 else ""

    def host(self, node: int) -> str:
        """Return the name by which the scheduler knows a node's machine; empty if it cannot avoid a machine."""
        return ""

    def machine_failed(self, node: int) -> bool:
        """Return True if the scheduler reports that the machine of a lost node has failed."""
        return False

    def clean_up(self, node: int) -> None:  # noqa: B027 by default an agent leaves no processes
        """End all processes that the node's agent left behind."""

    def mark_lost(self, node: int) -> None:
        """Stop using a node that died or was taken back."""
        self.clean_up(node)

    def acquire(self, wanted: int) -> list[int]:
        """Return up to `wanted` nodes that can join now, and request more from the scheduler if necessary."""
        return []

    def release(self, node: int) -> None:  # noqa: B027 by default nodes are not given back early
        """Give back a node that the run no longer needs."""

    def stop_reason(self) -> str:
        """Return the reason why the scheduler wants the nodes back (a StopReason or free text), or an empty string."""
        return ""

    def query_stop_reason(self) -> str:
        """Ask the scheduler why it stopped agents directly, without this process; empty if it did not."""
        return ""

    def can_retry(self) -> bool:
        """Return True if the nodes are still allocated after an attempt, so that the next one can start at once."""
        return True
