"""An agent's decisions about the ranks of its node, without a clock or processes: events and times in, actions out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.membership.protocol import Message

# for ranks to leave a group that has ended: a collective may wait for a peer that is stopped or cannot be reached
LEAVE_SECONDS = 0.5


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
class Release:
    """Have the ranks leave their group, and kill those that cannot; `NodeAgent.released` follows."""


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


Action = Tell | BeReady | Start | Release | Kill | Save | Record | Exit


@dataclass
class NodeAgent:
    """The ranks of one node in the newest group that they belong to. Every method returns the actions that follow."""

    elastic: bool
    stopping: bool = False  # the node has to stop: it saves and leaves
    group: int = 0
    running: set[int] = field(default_factory=set)  # ranks that have not left the group
    codes: dict[int, int] = field(default_factory=dict)
    _release_at: float = math.inf
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
                self.group, self.codes = message["group"], {}
                self._release_at = self._kill_at = math.inf
                return [Start(*(message[key] for key in ("group", "node_rank", "nodes", "address", "port")))]
            case "over":
                return [Kill(), Exit(message["code"])]
            case "end" if message["group"] == self.group:
                if not self.running:
                    return [BeReady(self.group)]
                self._release_at = now + message["seconds"]
                return self.tick(now)
            case "save" if message["group"] == self.group:
                return [Save()]
            case "record" if message["group"] == self.group:
                return [Record()]
        return []

    def started(self, ranks: set[int]) -> None:
        self.running = set(ranks)

    def released(self, remaining: set[int], now: float) -> list[Action]:
        """Take note that the ranks were told to leave: `remaining` will do so, the others are dead."""
        if not remaining:
            return self.killed()
        self.running, self._release_at, self._kill_at = set(remaining), math.inf, now + LEAVE_SECONDS
        return []

    def ended(self, codes: Mapping[int, int]) -> list[Action]:
        """Report ranks that ended or left their group by themselves, with their exit codes; 75 for those that left."""
        self.running -= codes.keys()
        self.codes |= codes
        leave = self._kill_at < math.inf and set(codes.values()) == {EXIT_LOST_PEER}
        report: list[Action] = [] if leave else [Tell({"say": "ended", "group": self.group, "codes": dict(codes)})]
        if self.running:
            return report
        if EXIT_REQUEUE in self.codes.values() and (self.stopping or not self.elastic):
            return [*report, Exit(EXIT_REQUEUE)]
        ready = EXIT_REQUEUE in self.codes.values() or min(self._release_at, self._kill_at) < math.inf
        return [*report, BeReady(self.group)] if ready else report

    def killed(self) -> list[Action]:
        """Take note that all ranks are dead."""
        self.running = set()
        self._release_at = self._kill_at = math.inf
        return [BeReady(self.group)]

    def tick(self, now: float) -> list[Action]:
        """Let time pass. Call it at `next_tick` at the latest."""
        if self.running and now >= self._kill_at:
            return [Kill()]
        return [Release()] if self.running and now >= self._release_at else []

    @property
    def has_nothing_to_save(self) -> bool:
        """True if all ranks are gone and none has saved or finished: a stop need not wait for the coordinator."""
        return not self.running and not {EXIT_DONE, EXIT_REQUEUE} & {*self.codes.values()}

    @property
    def next_tick(self) -> float:
        return min(self._release_at, self._kill_at) if self.running else math.inf
