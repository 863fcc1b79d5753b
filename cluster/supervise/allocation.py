"""The interface of an allocation: the nodes on which an attempt's agents run, seen from the supervisor."""

import signal
from abc import ABC, abstractmethod
from pathlib import Path

from cluster.process.forking import Process


class Allocation(ABC):
    """The nodes that a backend gives a run, numbered from 0. Defaults: the nodes stay ours, and none joins."""

    name: str  # the backend's
    owner_limits_time: bool = False  # else the supervisor ends an attempt at its time limit

    @abstractmethod
    def initial_nodes(self) -> list[int]:
        """Return the nodes that an attempt begins with."""

    @abstractmethod
    def address(self, node: int) -> str:
        """Return the host name or address under which the other nodes reach `node`."""

    @abstractmethod
    def free_port(self) -> int:
        """Reserve a port of node 0 that this user alone can bind, until the next call or the end of the allocation."""

    @abstractmethod
    def start(self, node: int, command: list[str], log: Path) -> Process:
        """Start a command on a node, with stop signals blocked until it handles them.

        SIGUSR2 to the returned process reaches the command; killing the returned process ends it.
        """

    @abstractmethod
    def end(self, process: Process) -> None:
        """Kill a process that `start` or `start_service` started, and its descendants."""

    def start_service(self, command: list[str], log: Path) -> Process:
        """Start a command on node 0 that must outlive the agents: the rendezvous store."""
        return self.start(0, command, log)

    def loss_reason(self, node: int, code: int) -> str:
        """Say why `node` counts as lost, given that its agent exited with `code` and reported nothing; empty: it is not lost."""
        return signal.Signals(-code).name if code < 0 else ""

    def clean_up(self, node: int) -> None:  # noqa: B027 by default nothing is left
        """End all processes that the node's agent has left behind."""

    def mark_lost(self, node: int) -> None:
        """Stop using a node that died or that its owner took back."""
        self.clean_up(node)

    def acquire(self, wanted: int) -> list[int]:
        """Return at most `wanted` nodes that can join now; ask the owner for more where nodes must be asked for."""
        return []

    def release(self, node: int) -> None:  # noqa: B027 by default nobody waits for it
        """Give back a node that the run has left for good."""

    def stop_reason(self) -> str:
        """Say why the owner of the nodes wants them back: a StopReason, or plain words; empty while the owner does not."""
        return ""

    def query_stop_reason(self) -> str:
        """Ask the owner of the nodes why agents were stopped that this process had not told to; empty: the owner did not."""
        return ""

    def can_retry(self) -> bool:
        """Say, after an attempt, whether the nodes are still ours, so that the next attempt may start on them at once."""
        return True


def agent_command(python: str, run_path: str, attempt: str, *, node: int, nodes: str, address: str, rendezvous: str) -> list[str]:
    """How the agent of one node is started."""
    words = [python, "-m", "cluster.agent", run_path, "--attempt", attempt, "--node", str(node)]
    words += ["--nodes", nodes, "--address", address]
    return [*words, "--rendezvous", rendezvous] if rendezvous else words


def store_command(python: str, host: str, port: str) -> list[str]:
    """How the rendezvous store is started."""
    return [python, "-m", "cluster.engines.store", "--host", host, "--port", port]
