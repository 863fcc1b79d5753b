"""The interface of an allocation: the nodes on which an attempt's agents run, seen from the supervisor."""

from pathlib import Path
from typing import Protocol

from cluster.process.forking import Process

AGENTS = "agents.jsonl"  # one line an agent: node, address, pid of what started it


class Lane(Protocol):
    """Where the agents of an attempt run: a backend's nodes, numbered from 0, seen from the process that carries the run."""

    name: str  # the backend's

    def nodes(self) -> list[int]:
        """The nodes that there are at the beginning of an attempt."""
        ...

    def address(self, node: int) -> str:
        """Under which the other nodes reach it."""
        ...

    def free_port(self) -> int:
        """A port of node 0's address that this user alone can bind, until the lane is asked again or ends."""
        ...

    def start(self, node: int, command: list[str], log: Path) -> Process:
        """Start a command on a node, deaf until it hears stops; SIGUSR2 to what is returned reaches it, killing that ends it."""
        ...

    def serve(self, command: list[str], log: Path) -> Process:
        """Start a command beside this process, on node 0."""
        ...

    def end(self, process: Process) -> None:
        """End what `start` or `serve` started, with all that it started itself."""
        ...

    def lost(self, node: int, code: int) -> str:
        """Why the node is lost, in a word, if an agent that said nothing ended with `code` for that reason; else empty."""
        ...

    def clean(self, node: int) -> None:
        """The node's agent has left: nothing of what it started stays."""
        ...

    def bury(self, node: int) -> None:
        """The node was lost, or its owner took it back; clean it too."""
        ...

    def offered(self, wanted: int) -> list[int]:
        """Nodes that can join now, of at most `wanted` that an elastic run could use; asks for them where one must."""
        ...

    def release(self, node: int) -> None:
        """The run has left this node for good: give it back."""
        ...

    def notice(self) -> str:
        """Why whoever owns the nodes wants them back: a StopReason, or plain words; empty as long as nobody does."""
        ...

    def explain(self) -> str:
        """The same for a stop that reached the agents past this process: whoever owns the nodes is asked."""
        ...

    def keeps(self) -> bool:
        """After an attempt: the nodes are still ours, so that the next one may start at once."""
        ...


def agent_command(python: str, run_path: str, attempt: str, *, node: int, nodes: str, address: str, rendezvous: str) -> list[str]:
    """How the agent of one node is started."""
    words = [python, "-m", "cluster.agent", run_path, "--attempt", attempt, "--node", str(node)]
    words += ["--nodes", nodes, "--address", address]
    return [*words, "--rendezvous", rendezvous] if rendezvous else words


def store_command(python: str, host: str, port: str) -> list[str]:
    """How the rendezvous store is started."""
    return [python, "-m", "cluster.engines.store", "--host", host, "--port", port]
