"""The coordinator's decisions about groups of ranks, without a clock or a socket: events and times in, messages out.

A group has one number for ever: the fence of its ranks. Messages of an agent: `ready` (it has no ranks and can start some),
`ended` (ranks that ended by themselves), `votes` and `recorded` (of hung ranks), `broken` (a rank is stopped) and `leave`.
Of the coordinator: `form` (start the ranks of a group), `save` (the ranks have to save, since a node wants to join), `record`
(record the stacks of hung ranks), `end` (kill the ranks) and `over` (exit with a code).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.membership.decisions import Decision, Failed, GroupFormed, NodeSilent, RankLost, Tell
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
    JUDGING = auto()  # ranks failed, and the caller decides whether another group forms
    OVER = auto()  # all agents have to exit


@dataclass(eq=False)
class Node:
    """A member whose agent has introduced itself."""

    member: Member
    index: int
    address: str
    port: int = 0  # free on the node, for the store of rank 0
    group: int = 0  # newest group of this session
    running: int = 0  # ranks of that group
    codes: dict[int, int] = field(default_factory=dict)  # exit codes of ranks that ended by themselves
    votes: frozenset[str] = frozenset()
    spare: bool = False  # no rank has work in that group

    @property
    def is_clean(self) -> bool:
        """True if all its ranks have finished or saved."""
        return not self.running and all(code in CLEAN for code in self.codes.values())


@dataclass(eq=False)
class Groups:
    """Groups of one term of a coordinator. Every method returns what follows from an event, in order."""

    term: int
    least: int  # nodes of a group
    most: int
    ranks_per_node: int
    spare: int = 0  # further nodes that are expected; the first group forms of those with the lowest indexes
    restarts_allowed: float = math.inf  # after groups that ended without saving, since the last one that saved
    phase: Phase = Phase.FORMING
    number: int = 0  # of the newest group
    nodes: dict[Member, Node] = field(default_factory=dict)
    _ready: set[Node] = field(default_factory=set)
    _group: list[Node] = field(default_factory=list)  # nodes of the newest group, also those that are gone
    _busy: set[Node] = field(default_factory=set)  # those that are neither gone nor ready for another group
    _unclean: set[Node] = field(default_factory=set)  # those with ranks that have not finished or saved
    _votes: Counter[str] = field(default_factory=Counter)  # number of nodes by vote
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
        return [*self._lose(event.member, now, silent=event.silent), *self.tick(now)]

    def tick(self, now: float) -> list[Decision]:
        """Let time pass. Call it at `next_tick` at the latest."""
        decisions: list[Decision] = []
        if self.phase in (Phase.SAVING, Phase.HUNG) and now >= self._deadline:
            decisions += self._end(now, 0.0, counts=self.phase is Phase.HUNG)
        if self.phase is Phase.ENDING and (now >= self._deadline or not self._busy):
            decisions += self._conclude()
        if self.phase is Phase.FORMING:
            decisions += self._form(now)
        if self.phase is Phase.WORKING and len(self._group) < self.most and self._has_newcomer():
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
        if node is None or not self.number == node.group == message["group"]:
            return []
        match message["say"]:
            case "ended":
                return self._end_ranks(node, {int(rank): int(code) for rank, code in message["codes"].items()}, now)
            case "votes" if self.phase in (Phase.WORKING, Phase.SAVING):
                node.spare = message["spare"]
                self._vote(node, frozenset(vote for vote in VOTES if message[vote]))
                return self._record(now) if self._is_hung() else []
            case "recorded" if self.phase is Phase.HUNG:
                self._vote(node, frozenset())
                return [] if self._votes.total() else self._end(now, 0.0)
            case "broken" if self.phase in (Phase.WORKING, Phase.SAVING):
                return self._end(now, 0.0)
        return []

    def _be_ready(self, member: Member, message: Message) -> list[Decision]:
        node = self.nodes.setdefault(member, Node(member, int(message["node"]), str(message["address"])))
        if message["group"] < node.group:
            return []  # the agent has not received the newest `form` yet
        node.port, node.running = int(message["port"]), 0
        self._ready.add(node)
        self._busy.discard(node)
        if self.phase is Phase.OVER:
            return [Tell(member, {"say": "over", "code": self._exit_code})]
        return self._finish(node) if node.group == self.number else []

    def _end_ranks(self, node: Node, codes: Mapping[int, int], now: float) -> list[Decision]:
        node.codes |= codes
        node.running -= len(codes)
        failed = {rank: code for rank, code in codes.items() if code not in CLEAN}
        decisions: list[Decision] = [RankLost(self.number, node.index, rank, code) for rank, code in failed.items()]
        if EXIT_NEVER_RETRY in failed.values():
            return [*decisions, *self._be_over(EXIT_NEVER_RETRY)]
        if not failed or self.phase in (Phase.FORMING, Phase.JUDGING, Phase.OVER):
            return [*decisions, *self._finish(node)]
        if node.spare and self.phase is not Phase.ENDING:
            self._drop(node)
            return [*decisions, Tell(node.member, {"say": "end", "group": self.number, "seconds": 0.0})]
        first = self.phase is not Phase.ENDING
        if set(failed.values()) != {EXIT_LOST_PEER}:
            return [*decisions, *self._end(now, 0.0, counts=first)]
        return [*decisions, *self._end(now, CAUSE_SECONDS)] if first else decisions

    def _lose(self, member: Member, now: float, *, silent: bool = False) -> list[Decision]:
        """Go on without a member that is dead or has left."""
        node = self.nodes.pop(member, None)
        if node is None:
            return []
        self._ready.discard(node)
        self._busy.discard(node)
        self._vote(node, frozenset())
        if node.group != self.number or self.phase not in (Phase.WORKING, Phase.SAVING, Phase.HUNG):
            return []
        if node.spare:
            self._drop(node)
        if node.group != self.number or node.is_clean:
            return self._finish(node)
        lost: list[Decision] = [NodeSilent(self.number, node.index)] if silent else []
        return [*lost, *self._end(now, 0.0)]

    def _drop(self, node: Node) -> None:
        """Let the group go on without a spare node."""
        self._group.remove(node)
        self._busy.discard(node)
        self._unclean.discard(node)
        self._vote(node, frozenset())
        node.group, node.spare = 0, False

    # --- the end of a group

    def _finish(self, node: Node) -> list[Decision]:
        """Take note that a node's ranks may have finished or saved; conclude the group if all have."""
        if node.is_clean:
            self._unclean.discard(node)
        if self.phase not in (Phase.WORKING, Phase.SAVING, Phase.HUNG) or self._unclean:
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
        if codes:
            self.phase = Phase.JUDGING
            return [Failed(self.number, codes)]
        return self._try_again(None)

    def judge(self, code: int | None, now: float) -> list[Decision]:
        """Take the verdict about a failed group: form another one, or have all agents exit with a code."""
        return [*self._try_again(code), *self.tick(now)] if self.phase is Phase.JUDGING else []

    def _try_again(self, code: int | None) -> list[Decision]:
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
        return self._votes["silent"] == len(self._group) and all(self._votes[vote] > 0 for vote in VOTES)

    def _vote(self, node: Node, votes: frozenset[str]) -> None:
        """Replace a node's votes."""
        self._votes.subtract(node.votes)
        self._votes.update(votes)
        node.votes = votes

    def _record(self, now: float) -> list[Decision]:
        self.phase, self._deadline = Phase.HUNG, now + RECORD_SECONDS
        for node in self._group:
            if node.spare:
                self._vote(node, frozenset())
        return self._tell_group({"say": "record", "group": self.number})

    # --- a new group

    def _form(self, now: float) -> list[Decision]:
        """Form a group if there are enough nodes and no more are to be expected soon."""
        if len(self._ready) < self.least:
            self._enough_since = None
            return []
        self._enough_since = now if self._enough_since is None else self._enough_since
        waited, first = now - self._enough_since, self.number == 0
        settled = not first if len(self._ready) == len(self.nodes) else waited >= PATIENCE_SECONDS
        if len(self._ready) < self.most + first * self.spare and not settled and not (first and waited >= SETTLE_SECONDS):
            return []
        self.number, self.phase, self._enough_since, self._deadline = self.number + 1, Phase.WORKING, None, math.inf
        self._group = self._places()
        self._busy, self._unclean, self._votes = set(self._group), set(self._group), Counter()
        self._ready -= self._busy
        first_rank = {"address": self._group[0].address, "port": self._group[0].port}
        decisions: list[Decision] = [GroupFormed(self.number, len(self._group), len(self._ready))]
        for rank, node in enumerate(self._group):
            node.group, node.running = self.number, self.ranks_per_node
            node.codes, node.votes, node.spare = {}, frozenset(), False
            form = {"say": "form", "group": self.number, "node_rank": rank, "nodes": len(self._group), **first_rank}
            decisions.append(Tell(node.member, form))
        return decisions

    def _places(self) -> list[Node]:
        """Return the nodes of the next group by node rank. Those of the last one stay; with as many they keep it."""
        last = dict.fromkeys(self._group)
        chosen = sorted(
            sorted(self._ready, key=lambda node: (node not in last, node.index))[: self.most], key=lambda node: node.index
        )
        if len(chosen) != len(last):
            return chosen
        newcomers = (node for node in chosen if node not in last)
        return [node if node in chosen else next(newcomers) for node in last]

    def _present(self) -> list[Node]:
        """Return the nodes of the newest group that are not gone."""
        return [node for node in self._group if node.member in self.nodes]

    def _has_newcomer(self) -> bool:
        return any(node.group != self.number for node in self._ready)

    def _tell_group(self, message: Message) -> list[Decision]:
        return [Tell(node.member, message) for node in self._present()]
