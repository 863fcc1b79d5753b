"""The coordinator's decisions about groups of ranks, without a clock or a socket: events and times in, messages out.

A group has one number for ever: the fence of its ranks. Messages of an agent: `ready` (it has no ranks and can start some),
`ended` (ranks that ended by themselves), `votes` and `recorded` (of hung ranks), `broken` (a rank is stopped) and `leave`.
Of the coordinator: `form` (start the ranks of a group), `save` (the ranks have to save, since a node wants to join), `record`
(record the stacks of hung ranks), `end` (kill the ranks) and `over` (exit with a code).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.membership.members import Died, Joined, Member, Received
from ropewalk.cluster.membership.protocol import Message

SETTLE_SECONDS = 1.0  # before the first group of an attempt forms with fewer nodes than it may have
PATIENCE_SECONDS = 10.0  # for agents to kill their ranks; the others then form a group without them
CAUSE_SECONDS = 1.0  # for ranks to end by themselves after one has lost a peer: the peer's exit code is the cause
SAVE_SECONDS = 120.0  # for ranks to save before they are killed, when a node wants to join
RECORD_SECONDS = 2.0  # for all agents to record the stacks of hung ranks

CLEAN = (EXIT_DONE, EXIT_REQUEUE)
VOTES = ("silent", "cause", "waiter")


class Phase(Enum):
    """State of the newest group."""

    FORMING = auto()  # there is none
    WORKING = auto()
    SAVING = auto()  # its ranks were asked to save
    HUNG = auto()  # its agents record stacks
    ENDING = auto()  # its ranks are being killed
    OVER = auto()  # all agents have to exit


@dataclass(eq=False)
class Node:
    """A member whose agent has introduced itself."""

    member: Member
    index: int
    address: str
    port: int = 0  # free on the node, for the store of rank 0
    ready: bool = False
    group: int = 0  # newest group of this session
    running: int = 0  # ranks of that group
    codes: dict[int, int] = field(default_factory=dict)  # exit codes of ranks that ended by themselves
    votes: frozenset[str] = frozenset()

    @property
    def is_clean(self) -> bool:
        """True if all its ranks have finished or saved."""
        return not self.running and all(code in CLEAN for code in self.codes.values())


@dataclass(frozen=True)
class Tell:
    """Send a member a message."""

    member: Member
    message: Message


@dataclass(frozen=True)
class GroupFormed:
    """A group has formed."""

    group: int
    nodes: int


@dataclass(frozen=True)
class RankLost:
    """A rank ended with an error, or by a signal."""

    group: int
    node: int
    rank: int
    code: int


Decision = Tell | GroupFormed | RankLost
Judge = Callable[[Mapping[int, int]], int | None]  # exit codes of a group's ranks -> exit code of the agents; None: try again


def try_again(codes: Mapping[int, int]) -> int | None:
    """Return None, the verdict that any failure is a disturbance."""
    return None


@dataclass(eq=False)
class Groups:
    """Groups of one term of a coordinator. Every method returns what follows from an event, in order."""

    term: int
    least: int  # nodes of a group
    most: int
    ranks_per_node: int
    restarts_allowed: float = math.inf  # after groups that ended without saving, since the last one that saved
    judge: Judge = try_again
    phase: Phase = Phase.FORMING
    number: int = 0  # of the newest group
    nodes: dict[Member, Node] = field(default_factory=dict)
    _group: list[Node] = field(default_factory=list)  # nodes of the newest group, also those that are gone
    _deadline: float = math.inf  # of the phase
    _enough_since: float | None = None
    _restarts: int = 0
    _exit_code: int = EXIT_DONE

    def handle(self, event: Joined | Received | Died, now: float) -> list[Decision]:
        """Take an event of the members."""
        if isinstance(event, Joined):
            term, group = event.member.fence
            self.number = max(self.number, group) if term == self.term else self.number
            return []
        if isinstance(event, Received):
            return [*self._receive(event.member, event.message, now), *self.tick(now)]
        return [*self._lose(event.member, now), *self.tick(now)]

    def tick(self, now: float) -> list[Decision]:
        """Let time pass. Call it at `next_tick` at the latest."""
        decisions: list[Decision] = []
        if self.phase in (Phase.SAVING, Phase.HUNG) and now >= self._deadline:
            decisions += self._end(now, 0.0, counts=self.phase is Phase.HUNG)
        if self.phase is Phase.ENDING and (now >= self._deadline or all(node.ready for node in self._present())):
            decisions += self._conclude()
        if self.phase is Phase.FORMING:
            decisions += self._form(now)
        if self.phase is Phase.WORKING and len(self._group) < self.most and any(node.ready for node in self._newcomers()):
            self.phase, self._deadline = Phase.SAVING, now + SAVE_SECONDS
            decisions += self._tell_group({"say": "save", "group": self.number})
        return decisions

    @property
    def next_tick(self) -> float:
        """Time of the next call of `tick`, if nothing happens before."""
        if self.phase is Phase.FORMING and self._enough_since is not None:
            return self._enough_since + (PATIENCE_SECONDS if self.number else SETTLE_SECONDS)
        return self._deadline if self.phase in (Phase.SAVING, Phase.HUNG, Phase.ENDING) else math.inf

    # --- events

    def _receive(self, member: Member, message: Message, now: float) -> list[Decision]:
        if message["say"] == "ready":
            return self._be_ready(member, message)
        node = self.nodes.get(member)
        if message["say"] == "leave":
            return self._lose(member, now)
        if node is None or node not in self._group or message["group"] != self.number:
            return []
        match message["say"]:
            case "ended":
                return self._end_ranks(node, {int(rank): int(code) for rank, code in message["codes"].items()}, now)
            case "votes" if self.phase in (Phase.WORKING, Phase.SAVING):
                node.votes = frozenset(vote for vote in VOTES if message[vote])
                return self._record(now) if self._is_hung() else []
            case "recorded" if self.phase is Phase.HUNG:
                node.votes = frozenset()
                return [] if any(each.votes for each in self._present()) else self._end(now, 0.0)
            case "broken" if self.phase in (Phase.WORKING, Phase.SAVING):
                return self._end(now, 0.0)
        return []

    def _be_ready(self, member: Member, message: Message) -> list[Decision]:
        node = self.nodes.setdefault(member, Node(member, int(message["node"]), str(message["address"])))
        if message["group"] < node.group:
            return []  # the agent has not received the newest `form` yet
        node.ready, node.port, node.running = True, int(message["port"]), 0
        if self.phase is Phase.OVER:
            return [Tell(member, {"say": "over", "code": self._exit_code})]
        return self._finish() if node in self._group else []

    def _end_ranks(self, node: Node, codes: Mapping[int, int], now: float) -> list[Decision]:
        node.codes |= codes
        node.running -= len(codes)
        failed = {rank: code for rank, code in codes.items() if code not in CLEAN}
        decisions: list[Decision] = [RankLost(self.number, node.index, rank, code) for rank, code in failed.items()]
        if EXIT_NEVER_RETRY in failed.values():
            return [*decisions, *self._be_over(EXIT_NEVER_RETRY)]
        if not failed or self.phase in (Phase.FORMING, Phase.OVER):
            return [*decisions, *self._finish()]
        first = self.phase is not Phase.ENDING
        if set(failed.values()) != {EXIT_LOST_PEER}:
            return [*decisions, *self._end(now, 0.0, counts=first)]
        return [*decisions, *self._end(now, CAUSE_SECONDS)] if first else decisions

    def _lose(self, member: Member, now: float) -> list[Decision]:
        """Go on without a member that is dead or has left."""
        node = self.nodes.pop(member, None)
        if node is None or node not in self._group or self.phase in (Phase.ENDING, Phase.OVER, Phase.FORMING):
            return []
        return self._finish() if node.is_clean else self._end(now, 0.0)

    # --- the end of a group

    def _finish(self) -> list[Decision]:
        """Conclude a group whose ranks have all finished or saved."""
        if self.phase not in (Phase.WORKING, Phase.SAVING, Phase.HUNG) or not all(node.is_clean for node in self._group):
            return []
        if all(code == EXIT_DONE for node in self._group for code in node.codes.values()):
            return self._be_over(EXIT_DONE)
        self.phase, self._restarts = Phase.FORMING, 0
        return []

    def _end(self, now: float, grace_seconds: float, *, counts: bool = True) -> list[Decision]:
        """Have the ranks of the group killed after some seconds."""
        self.phase, self._deadline = Phase.ENDING, now + grace_seconds + PATIENCE_SECONDS
        self._restarts += counts
        return self._tell_group({"say": "end", "group": self.number, "seconds": grace_seconds})

    def _conclude(self) -> list[Decision]:
        """Form a new group after a failure, or give up."""
        codes = {rank: code for node in self._group for rank, code in node.codes.items() if code not in CLEAN}
        code = self.judge(codes) if codes else None
        if code is None and self._restarts > self.restarts_allowed:
            code = EXIT_LOST_PEER
        if code is not None:
            return self._be_over(code)
        self.phase = Phase.FORMING
        return []

    def _be_over(self, code: int) -> list[Decision]:
        self.phase, self._exit_code = Phase.OVER, code
        return [Tell(member, {"say": "over", "code": code}) for member in self.nodes]

    # --- hung ranks

    def _is_hung(self) -> bool:
        """Return True if the ranks of all nodes are silent, and some have the cause and a rank that waits for it."""
        votes = [node.votes for node in self._group]
        return all("silent" in each for each in votes) and all(any(vote in each for each in votes) for vote in VOTES[1:])

    def _record(self, now: float) -> list[Decision]:
        self.phase, self._deadline = Phase.HUNG, now + RECORD_SECONDS
        return self._tell_group({"say": "record", "group": self.number})

    # --- a new group

    def _form(self, now: float) -> list[Decision]:
        """Form a group if there are enough nodes and no more are to be expected soon."""
        ready = sorted((node for node in self.nodes.values() if node.ready), key=lambda node: node.index)
        if len(ready) < self.least:
            self._enough_since = None
            return []
        self._enough_since = now if self._enough_since is None else self._enough_since
        waited, first = now - self._enough_since, self.number == 0
        settled = not first if len(ready) == len(self.nodes) else waited >= PATIENCE_SECONDS
        if len(ready) < self.most and not settled and not (first and waited >= SETTLE_SECONDS):
            return []
        self.number, self.phase, self._enough_since, self._deadline = self.number + 1, Phase.WORKING, None, math.inf
        self._group = ready[: self.most]
        first_rank = {"address": self._group[0].address, "port": self._group[0].port}
        decisions: list[Decision] = [GroupFormed(self.number, len(self._group))]
        for rank, node in enumerate(self._group):
            node.ready, node.group, node.running = False, self.number, self.ranks_per_node
            node.codes, node.votes = {}, frozenset()
            form = {"say": "form", "group": self.number, "node_rank": rank, "nodes": len(self._group), **first_rank}
            decisions.append(Tell(node.member, form))
        return decisions

    def _present(self) -> list[Node]:
        """Return the nodes of the newest group that are not gone."""
        return [node for node in self._group if node.member in self.nodes]

    def _newcomers(self) -> Iterable[Node]:
        return (node for node in self.nodes.values() if node.group != self.number)

    def _tell_group(self, message: Message) -> list[Decision]:
        return [Tell(node.member, message) for node in self._present()]
