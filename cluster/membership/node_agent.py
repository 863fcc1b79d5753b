"""An agent's decisions about the ranks of its node, without a clock or processes: events and times in, actions out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.membership.protocol import Message

# for ranks to leave a group that has ended: a collective may wait for a peer that is stopped or cannot be reached
LEAVE_SECONDS = 0.5


class Order(Enum):
    """Actions without arguments."""

    BE_READY = auto()  # tell the coordinator that ranks can start, with a free port for the store of rank 0
    RELEASE = auto()  # have the ranks leave their group, and kill those that cannot; `NodeAgent.released` follows
    KILL = auto()  # kill all ranks
    SAVE = auto()  # ask the ranks to save, since a new group is to form
    RECORD = auto()  # record the stacks of the ranks


@dataclass(frozen=True)
class Start:
    """Start the ranks of a group."""

    group: int
    node_rank: int
    nodes: int
    address: str
    port: int


@dataclass(frozen=True)
class Exit:
    """Leave the group, and exit with a code."""

    code: int


Action = Message | Order | Start | Exit  # a message goes to the coordinator


@dataclass
class NodeAgent:
    """The ranks of one node in the newest group that they belong to. Every method returns the actions that follow."""

    ranks: int  # in a group
    elastic: bool
    stopping: bool = False  # the node has to stop: it saves and leaves
    group: int = 0
    running: set[int] = field(default_factory=set)  # ranks that have not left the group
    codes: dict[int, int] = field(default_factory=dict)
    _release_at: float = math.inf
    _kill_at: float = math.inf

    def joined(self) -> list[Action]:
        """Begin a session; ranks of an earlier one belong to a group that is lost."""
        return self.kill() if self.running else [Order.BE_READY]

    def take(self, message: Message, now: float) -> list[Action]:
        """Take a message of the coordinator."""
        match message["say"]:
            case "form":
                start = Start(*(message[key] for key in ("group", "node_rank", "nodes", "address", "port")))
                self.group, self.codes = start.group, {}
                self.running = set(range(start.node_rank * self.ranks, (start.node_rank + 1) * self.ranks))
                self._release_at = self._kill_at = math.inf
                return [start]
            case "over":
                return [Order.KILL, Exit(message["code"])]
            case "end" if message["group"] == self.group:
                if not self.running:
                    return [Order.BE_READY]
                self._release_at = now + message["seconds"]
                return self.tick(now)
            case "save" if message["group"] == self.group:
                return [Order.SAVE]
            case "record" if message["group"] == self.group:
                return [Order.RECORD]
        return []

    def released(self, remaining: set[int], now: float) -> list[Action]:
        """Take note that the ranks were told to leave: `remaining` will do so, the others are dead."""
        self.running, self._release_at, self._kill_at = set(remaining), math.inf, now + LEAVE_SECONDS
        return [] if remaining else [Order.BE_READY]

    def ended(self, codes: Mapping[int, int]) -> list[Action]:
        """Report ranks that ended or left their group by themselves, with their exit codes; 75 for those that left."""
        self.running -= codes.keys()
        self.codes |= codes
        leave = self._kill_at < math.inf and set(codes.values()) == {EXIT_LOST_PEER}
        report: list[Action] = [] if leave else [{"say": "ended", "group": self.group, "codes": dict(codes)}]
        if self.running:
            return report
        if EXIT_REQUEUE in self.codes.values() and (self.stopping or not self.elastic):
            return [*report, Exit(EXIT_REQUEUE)]
        ready = EXIT_REQUEUE in self.codes.values() or min(self._release_at, self._kill_at) < math.inf
        return [*report, Order.BE_READY] if ready else report

    def kill(self) -> list[Action]:
        """Kill all ranks."""
        self.running = set()
        return [Order.KILL, Order.BE_READY]

    def tick(self, now: float) -> list[Action]:
        """Let time pass. Call it often."""
        if self.running and now >= self._kill_at:
            return self.kill()
        return [Order.RELEASE] if self.running and now >= self._release_at else []

    @property
    def has_nothing_to_save(self) -> bool:
        """True if all ranks are gone and none has saved or finished: a stop need not wait for the coordinator."""
        return not self.running and not {EXIT_DONE, EXIT_REQUEUE} & {*self.codes.values()}
