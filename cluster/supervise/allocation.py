"""The interface of an allocation: the nodes on which an attempt's agents run, seen from the supervisor."""

import signal
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import Process


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """The agent of one node in an attempt. A backend that starts it over a wire sends the fields, never a command line."""

    run_path: str
    attempt: int
    node: int
    nodes: str  # of the attempt: `2`, or `1..4` where the run is elastic
    address: str  # under which the other nodes reach this one
    rendezvous: str = ""  # host:port of the store in which the agents meet; empty where the engine needs none
    python: str = sys.executable  # on the node

    def command(self) -> list[str]:
        """The command line that starts the agent on its node."""
        words = module_command("ropewalk.cluster.agent", self.run_path, python=self.python)
        words += ["--attempt", str(self.attempt), "--node", str(self.node)]
        words += ["--nodes", self.nodes, "--address", self.address]
        return [*words, "--rendezvous", self.rendezvous] if self.rendezvous else words


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """The rendezvous store of one attempt, on node 0."""

    attempt: int
    host: str
    port: str
    python: str = sys.executable  # on the node

    def command(self) -> list[str]:
        """The command line that starts the store."""
        return module_command("ropewalk.cluster.engines.store", "--host", self.host, "--port", self.port, python=self.python)


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
    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Process:
        """Start an agent on a node, with stop signals blocked until it handles them.

        SIGUSR2 to the returned process reaches the agent; killing the returned process ends it.
        """

    @abstractmethod
    def end(self, process: Process) -> None:
        """Kill a process that `start` or `start_store` started, and its descendants."""

    def start_store(self, spec: StoreSpec, log: Path) -> Process:
        """Start the rendezvous store on node 0; it must outlive the agents."""
        return self.start(0, spec, log)

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
        """Ask the owner of the nodes why it stopped agents past this process; empty if it did not."""
        return ""

    def can_retry(self) -> bool:
        """Say, after an attempt, whether the nodes are still ours, so that the next attempt may start on them at once."""
        return True
