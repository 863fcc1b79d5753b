"""An agent's decisions about the ranks of its node, without a clock or processes: events and times in, actions out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ropewalk.cluster.errors import EXIT_REQUEUE
from ropewalk.cluster.membership.protocol import Message


@dataclass(frozen=True)
class Tell:
    """Send the coordinator a message."""

    message: Message


@dataclass(frozen=True)
class BeReady:
    """Tell the coordinator that ranks can start, with `group` and a free port for the store of rank 0."""

    group: int


@dataclass(frozen=True)
class Start:
    """Start the ranks of a group."""

    group: int
    node_rank: int
    nodes: int
    address: str
    port: int


@dataclass(frozen=True)
class Kill:
    """Kill all ranks; `NodeAgent.killed` follows."""


@dataclass(frozen=True)
class Save:
    """Ask the ranks to save, since a new group is to form."""


@dataclass(frozen=True)
class Record:
    """Record the stacks of the ranks."""


@dataclass(frozen=True)
class Exit:
    """Leave the group, and exit with a code."""

    code: int


Action = Tell | BeReady | Start | Kill | Save | Record | Exit


@dataclass
class NodeAgent:
    """The ranks of one node in the newest group that they belong to. Every method returns the actions that follow."""

    elastic: bool
    stopping: bool = False  # the node has to stop: it saves and leaves
    group: int = 0
    running: set[int] = field(default_factory=set)  # ranks
    codes: dict[int, int] = field(default_factory=dict)
    _kill_at: float = math.inf

    def joined(self) -> list[Action]:
        """Begin a session; ranks of an earlier one belong to a group that is lost."""
        if not self.running:
            return [BeReady(self.group)]
        self._kill_at = -math.inf
        return [Kill()]

    def take(self, message: Message, now: float) -> list[Action]:
        """Take a message of the coordinator."""
        match message["say"]:
            case "form":
                self.group, self._kill_at, self.codes = message["group"], math.inf, {}
                return [Start(*(message[key] for key in ("group", "node_rank", "nodes", "address", "port")))]
            case "over":
                return [Kill(), Exit(message["code"])]
            case "end" if message["group"] == self.group:
                if not self.running:
                    return [BeReady(self.group)]
                self._kill_at = now + message["seconds"]
                return self.tick(now)
            case "save" if message["group"] == self.group:
                return [Save()]
            case "record" if message["group"] == self.group:
                return [Record()]
        return []

    def started(self, ranks: set[int]) -> None:
        self.running = set(ranks)

    def ended(self, codes: Mapping[int, int]) -> list[Action]:
        """Report ranks that ended by themselves, with their exit codes."""
        self.running -= codes.keys()
        self.codes |= codes
        report = Tell({"say": "ended", "group": self.group, "codes": dict(codes)})
        if self.running:
            return [report]
        if EXIT_REQUEUE in self.codes.values() and (self.stopping or not self.elastic):
            return [report, Exit(EXIT_REQUEUE)]
        ready = EXIT_REQUEUE in self.codes.values() or self._kill_at < math.inf
        return [report, BeReady(self.group)] if ready else [report]

    def killed(self) -> list[Action]:
        """Take note that all ranks are dead."""
        self.running, self._kill_at = set(), math.inf
        return [BeReady(self.group)]

    def tick(self, now: float) -> list[Action]:
        """Let time pass. Call it at `next_tick` at the latest."""
        return [Kill()] if self.running and now >= self._kill_at else []

    @property
    def next_tick(self) -> float:
        return self._kill_at if self.running else math.inf
