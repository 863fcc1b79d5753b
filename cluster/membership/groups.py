"""The coordinator's decisions about groups of ranks, without a clock or a socket: events and times in, messages out.

A group has one number for ever: the fence of its ranks. It is reserved one ahead, so that no other coordinator has it, even one
that was taken for dead. Messages of an agent: `ready` (it has no ranks and can start some), `ended` (ranks that ended by
themselves), `votes` (on a hang), `recorded` (stacks of hung ranks, or of a stopped one) and `leave`. Of the coordinator: `form`
(start the ranks of a group), `save` (the ranks have to save: a node joins or leaves), `record` (record the stacks of hung
ranks), `end` (kill the ranks) and `over` (exit with a code).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.membership.decisions import Decision, Failed, RecordEvent, Reserve, Tell
from ropewalk.cluster.membership.members import Died, Joined, Member, Received
from ropewalk.cluster.membership.protocol import Message

SETTLE_SECONDS = 1.0  # before a coordinator's first group forms with fewer nodes than are expected
PATIENCE_SECONDS = 10.0  # for agents to kill their ranks; the others then form a group without them
CAUSE_SECONDS = 1.0  # for ranks to end by themselves after one has lost a peer: the peer's exit code is the cause
SAVE_SECONDS = 120.0  # for ranks to save before they are killed, when a node wants to join; none when one leaves
RECORD_SECONDS = 2.0  # for all agents to record the stacks of hung ranks

CLEAN = (EXIT_DONE, EXIT_REQUEUE)
VOTES = ("silent", "cause", "waiter")


class Phase(Enum):
    """State of the newest group."""

    FORMING = auto()  # there is none
    WORKING = auto()  # with a deadline if its ranks were asked to save
    HUNG = auto()  # its agents record stacks
    ENDING = auto()  # its ranks are being killed
    JUDGING = auto()  # ranks failed, and the caller decides whether another group forms
    OVER = auto()  # all agents have to exit


ACTIVE = (Phase.WORKING, Phase.HUNG)  # nothing has ended the ranks


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


@dataclass(eq=False)
class Groups:
    """Groups of one coordinator in an attempt. Every method returns what follows from an event, in order."""

    attempt: int
    least: int  # nodes of a group
    most: int
    ranks_per_node: int
    expected: int  # nodes that will be ready soon; the first group forms of those with the lowest indexes
    restarts_allowed: float = math.inf  # after groups that ended without saving, since the last one that saved
    phase: Phase = Phase.FORMING
    number: int = 0  # of the newest group
    nodes: dict[Member, Node] = field(default_factory=dict)
    _ready: set[Node] = field(default_factory=set)
    _group: list[Node] = field(default_factory=list)  # nodes of the newest group, also those that are gone
    _running: set[Node] = field(default_factory=set)  # those with ranks that run
    _votes: Counter[str] = field(default_factory=Counter)  # number of nodes by vote
    _deadline: float = math.inf  # of the phase
    _asked: int = 0  # newest group whose ranks were asked to save
    _enough_since: float = math.inf  # time since which enough nodes are ready
    _restarts: int = 0
    _given: int = 0  # highest number known, also of groups of other coordinators
    _next: int = 0  # reserved number of the next group
    _reserving: bool = False
    _exit_code: int = EXIT_DONE

    def handle(self, event: Joined | Received | Died, now: float) -> list[Decision]:
        """Take an event of the members."""
        if isinstance(event, Joined):
            attempt, group = event.member.fence
            self._given = max(self._given, group) if attempt == self.attempt else self._given
            return []
        if isinstance(event, Received):
            decisions = self._receive(event.member, event.message, now)
        else:
            decisions = self._lose(event.member, now, silent=event.silent)
        return [*decisions, *self.tick(now)]

    def tick(self, now: float) -> list[Decision]:
        """Let time pass. Call it often."""
        decisions: list[Decision] = []
        if self._next <= self._given and not self._reserving:
            self._reserving = True
            decisions.append(Reserve(self._given))
        if self.phase in ACTIVE and self._running and now >= self._deadline:
            decisions += self._end(now, 0.0, counts=self.phase is Phase.HUNG)
        if self.phase in (*ACTIVE, Phase.ENDING) and (not self._running or now >= self._deadline):
            decisions += self._conclude(now)
        if self.phase is Phase.FORMING:
            decisions += self._form(now)
        if self.phase is Phase.WORKING and self._deadline == math.inf and len(self._group) < self.most and self._has_newcomer():
            self._deadline = now + SAVE_SECONDS
            decisions += self._save()
        return decisions

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
            case "votes" if self.phase is Phase.WORKING:
                node.spare = message["spare"]
                self._vote(node, frozenset(vote for vote in VOTES if message[vote]))
                return self._check_hang(now)
            case "recorded" if self.phase in ACTIVE:
                self._vote(node, frozenset())
                return [] if self.phase is Phase.HUNG and self._votes.total() else self._end(now, 0.0)
        return []

    def _be_ready(self, member: Member, message: Message) -> list[Decision]:
        node = self.nodes.setdefault(member, Node(member, int(message["node"]), str(message["address"])))
        if message["group"] < node.group:
            return []  # the agent has not received the newest `form` yet
        node.port, node.running = int(message["port"]), 0
        self._ready.add(node)
        self._running.discard(node)
        return [Tell(member, {"say": "over", "code": self._exit_code})] if self.phase is Phase.OVER else []

    def _end_ranks(self, node: Node, codes: Mapping[int, int], now: float) -> list[Decision]:
        node.codes |= codes
        node.running -= len(codes)
        if not node.running:
            self._running.discard(node)
        failed = {rank: code for rank, code in codes.items() if code not in CLEAN}
        origin = {"group": self.number, "node": node.index}
        decisions: list[Decision] = [RecordEvent("rank_lost", {**origin, "rank": r, "exit_code": c}) for r, c in failed.items()]
        if EXIT_NEVER_RETRY in failed.values():
            return [*decisions, *self._be_over(EXIT_NEVER_RETRY)]
        if not failed or self.phase in (Phase.FORMING, Phase.JUDGING, Phase.OVER):
            has_saved = EXIT_REQUEUE in codes.values() and not node.spare
            return [*decisions, *self._save()] if has_saved else decisions  # others do not notice it if they exchange nothing
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
        self._running.discard(node)
        self._vote(node, frozenset())
        if node.group != self.number or self.phase not in ACTIVE:
            return []
        if node.spare:
            self._drop(node)
        if node.group != self.number or not node.running:
            return []
        lost: list[Decision] = [RecordEvent("node_silent", {"group": self.number, "node": node.index})] if silent else []
        return [*lost, *self._end(now, 0.0)]

    def _drop(self, node: Node) -> None:
        """Let the group go on without a spare node."""
        self._group.remove(node)
        self._running.discard(node)
        self._vote(node, frozenset())
        node.group, node.spare = 0, False

    # --- the end of a group

    def _save(self) -> list[Decision]:
        """Ask the ranks of the group to save, once."""
        if self.phase is not Phase.WORKING or self._asked == self.number:
            return []
        self._asked = self.number
        return self._tell_group({"say": "save", "group": self.number})

    def _end(self, now: float, grace_seconds: float, *, counts: bool = True) -> list[Decision]:
        """Have the ranks of the group killed after some seconds."""
        self.phase, self._deadline = Phase.ENDING, now + grace_seconds + PATIENCE_SECONDS
        self._restarts += counts
        return self._tell_group({"say": "end", "group": self.number, "seconds": grace_seconds})

    def _conclude(self, now: float) -> list[Decision]:
        """Go on after the ranks of the group: all exit, another group forms, or the caller judges failures."""
        codes = {rank: code for node in self._group for rank, code in node.codes.items()}
        if self.phase in ACTIVE:  # all have finished or saved
            if set(codes.values()) <= {EXIT_DONE}:
                return self._be_over(EXIT_DONE)
            self._restarts = 0
        self.phase = Phase.JUDGING
        failed = {rank: code for rank, code in codes.items() if code not in CLEAN}
        return [Failed(self.number, failed)] if failed else self.judge(None, now)

    def judge(self, code: int | None, now: float) -> list[Decision]:
        """Take the verdict about a failed group: form another one, or have all agents exit with a code."""
        if self.phase is not Phase.JUDGING:
            return []
        if code is None and self._restarts > self.restarts_allowed:
            code = EXIT_LOST_PEER
        if code is not None:
            return self._be_over(code)
        self.phase = Phase.FORMING
        return self.tick(now)

    def _be_over(self, code: int) -> list[Decision]:
        self.phase, self._exit_code = Phase.OVER, code
        return [Tell(member, {"say": "over", "code": code}) for member in self.nodes]

    # --- hung ranks

    def _check_hang(self, now: float) -> list[Decision]:
        """Have stacks recorded if the ranks of all nodes are silent, and some have the cause and a rank that waits for it."""
        if self._votes["silent"] < len(self._group) or not all(self._votes[vote] for vote in VOTES):
            return []
        self.phase, self._deadline = Phase.HUNG, now + RECORD_SECONDS
        for node in self._group:
            if node.spare:
                self._vote(node, frozenset())
        return self._tell_group({"say": "record", "group": self.number})

    def _vote(self, node: Node, votes: frozenset[str]) -> None:
        """Replace a node's votes."""
        self._votes.subtract(node.votes)
        self._votes.update(votes)
        node.votes = votes

    # --- a new group

    def reserved(self, number: int, now: float) -> list[Decision]:
        """Take the number of the next group."""
        self._next, self._reserving = number, False
        return self.tick(now)

    def _form(self, now: float) -> list[Decision]:
        """Form a group if there are enough nodes and no more are to be expected soon."""
        if len(self._ready) < self.least:
            self._enough_since = math.inf
            return []
        self._enough_since = min(now, self._enough_since)
        complete = len(self._ready) >= (min(self.most, len(self.nodes)) if self._group else self.expected)
        patience_seconds = PATIENCE_SECONDS if self._group else SETTLE_SECONDS
        if self._next <= self._given or (not complete and now < self._enough_since + patience_seconds):
            return []
        self.number = self._given = self._next
        self.phase, self._enough_since, self._deadline = Phase.WORKING, math.inf, math.inf
        self._group = self._places()
        self._running, self._votes = set(self._group), Counter()
        self._ready -= self._running
        store = {"address": self._group[0].address, "port": self._group[0].port}
        spare = {"spare": len(self._ready)} if self._ready else {}  # nodes that have no place in it
        decisions: list[Decision] = [RecordEvent("group_formed", {"group": self.number, "nodes": len(self._group), **spare})]
        for rank, node in enumerate(self._group):
            node.group, node.running = self.number, self.ranks_per_node
            node.codes, node.votes, node.spare = {}, frozenset(), False
            form = {"say": "form", "group": self.number, "node_rank": rank, "nodes": len(self._group), **store}
            decisions.append(Tell(node.member, form))
        return decisions

    def _places(self) -> list[Node]:
        """Return the nodes of the next group by node rank. Those of the last one stay; with as many they keep it."""
        last = dict.fromkeys(self._group)
        chosen = sorted(self._ready, key=lambda node: (node not in last, node.index))[: self.most]
        chosen.sort(key=lambda node: node.index)
        if len(chosen) != len(last):
            return chosen
        newcomers = (node for node in chosen if node not in last)
        return [node if node in chosen else next(newcomers) for node in last]

    def _has_newcomer(self) -> bool:
        return any(node.group != self.number for node in self._ready)

    def _tell_group(self, message: Message) -> list[Decision]:
        return [Tell(node.member, message) for node in self._group if node.member in self.nodes]
