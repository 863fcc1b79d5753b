"""Simulator of a coordinator, agents and their ranks under faults: the real decisions, with simulated time, messages and disks.

    python -m tests.cluster.membership.simulator [--schedules 1000000] [--seed 0] [--nodes 3..9] [--jobs 2]

Each schedule follows from its seed, and a failure prints the seed that replays it. Messages are lost, late, doubled and
reordered; agents and coordinators die, freeze and come back; connections break or go silent; nodes of elastic runs save, leave
and return. Coordinators of elastic runs take over within an attempt, also from one that runs on. Three properties are checked: a
fence never names two groups; once faults end, all nodes work in one group; no step is committed twice.
"""

import argparse
import heapq
import itertools
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ropewalk.cluster.errors import EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.membership.contact import Contact, SessionEndedError
from ropewalk.cluster.membership.decisions import Decision, Failed, Reserve, Tell
from ropewalk.cluster.membership.groups import Groups
from ropewalk.cluster.membership.members import Close, Members, Output, Send
from ropewalk.cluster.membership.node_agent import Action, Exit, NodeAgent, Order, Start
from ropewalk.cluster.membership.protocol import SILENCE_SECONDS, Message

LATENCY, STEP_SECONDS, RETRY_SECONDS = 0.002, 0.15, 0.1
STAYS, LEAVES = 0.8, 0.8  # shares of ranks whose process can stay for the next group, and of those that do so in time
TERM_CHECK_SECONDS = 2.0  # between two looks of a coordinator at the newest term
TICK_SECONDS = 0.05  # between two looks of a process at its clock
QUIET_SECONDS = 15.0  # after the last fault: for all nodes to work in one group
LASTING_SECONDS = 11.0  # in which they go on: longer than each time limit of the protocol, but for a save
Fence = tuple[int, int]


class ViolationError(Exception):
    """A property does not hold."""


@dataclass
class Disk:
    """The run directory: newest term, reserved fences, newest claimed fence, committed steps."""

    term: int = 0
    reserved: set[Fence] = field(default_factory=set)
    fence: Fence = (0, 0)
    steps: list[Fence] = field(default_factory=list)  # the group that committed each step
    groups: dict[Fence, tuple[int, ...]] = field(default_factory=dict)  # nodes by group, for the check

    def reserve(self, attempt: int, number: int) -> int:
        """Reserve the first free number above `number` for a group of an attempt."""
        number += 1
        while (attempt, number) in self.reserved:
            number += 1
        self.reserved.add((attempt, number))
        return number

    def claim(self, fence: Fence) -> bool:
        if fence < self.fence:
            return False
        self.fence = fence
        return True

    def commit(self, step: int, fence: Fence) -> bool:
        """Commit a step unless the fence has a successor."""
        if fence != self.fence:
            return False
        if step != len(self.steps):
            raise ViolationError(f"step {step} is committed after {len(self.steps)} steps by group {fence}")
        self.steps.append(fence)
        return True


class World:
    """Simulated time, and everything that takes part."""

    def __init__(self, seed: int, least_nodes: int, most_nodes: int, spare: int = 0) -> None:
        self.random, self.now = Random(seed), 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.disk, self.work = Disk(), Work(self)
        self.loss = self.delay = 0.0  # probability, and longest additional seconds of a message
        count = self.random.randint(least_nodes, most_nodes)
        self.least = self.random.choice([count, self.random.randint(1, count)])
        self.most, self.spare = count, spare
        self.coordinators: dict[int, Coordinator] = {}
        self.agents = [Agent(self, node) for node in range(count + spare)]
        self.log: list[str] = []

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def note(self, text: str) -> None:
        self.log.append(f"{self.now:8.3f} {text}")

    @property
    def elastic(self) -> bool:
        return self.least < self.most or self.spare > 0

    def elect(self, *, needed: bool = False) -> None:
        """Begin a new term if the newest coordinator is dead, or does not run for so long that it counts as dead.

        `needed`: also if it runs, as one does that is cut off from the others.
        """
        leader = self.coordinators.get(self.disk.term)
        if needed or leader is None or leader.dead or leader.frozen:
            self.disk.term += 1
            self.coordinators[self.disk.term] = Coordinator(self, self.disk.term)
            self.note(f"coordinator {self.disk.term} begins")


class Actor:
    """A process: it may freeze, in which case its events wait and its clock stands still."""

    def __init__(self, world: World) -> None:
        self.world, self.dead, self.frozen = world, False, False
        self._stood_still, self._frozen_at = 0.0, 0.0
        self._waiting: list[Callable[[], None]] = []
        world.at(TICK_SECONDS * world.random.random(), self._tick)

    @property
    def clock(self) -> float:
        return self.world.now - self._stood_still

    def do(self, action: Callable[[], None]) -> None:
        """Perform an action unless the process is dead; later, if it is frozen."""
        if self.frozen:
            self._waiting.append(action)
        elif not self.dead:
            action()

    def freeze(self, seconds: float) -> None:
        if not self.frozen and not self.dead:
            self.frozen, self._frozen_at = True, self.world.now
            self.world.at(seconds, self.thaw)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._stood_still += self.world.now - self._frozen_at
            waiting, self._waiting = self._waiting, []
            for action in waiting:
                self.do(action)

    def _tick(self) -> None:
        if not self.dead:
            self.world.at(TICK_SECONDS, self._tick)
            if not self.frozen:
                self.tick()

    def tick(self) -> None:
        raise NotImplementedError


class Wire:
    """A connection of an agent to a coordinator."""

    def __init__(self, agent: "Agent", coordinator: "Coordinator") -> None:
        self.world, self.agent, self.coordinator = agent.world, agent, coordinator
        self.open, self.greeted, self.ended = True, False, False  # ended: the coordinator has read the end
        self.cut_until = 0.0  # nothing passes

    def deliver(self, action: Callable[[], None], *, reliable: bool = False) -> None:
        """Perform an action of the other side after the latency; it may be lost, late or doubled, unless it is reliable."""
        world = self.world
        for _ in range(2 if not reliable and world.random.random() < world.loss else 1):
            if world.now < self.cut_until or (not reliable and world.random.random() < world.loss):
                continue
            world.at(LATENCY + (world.random.random() * world.delay if world.delay else 0.0), action)

    def close(self, by: Actor | None = None) -> None:
        """Close the connection; each other side reads its end."""
        if not self.open:
            return
        self.open = False
        for actor, closed in ((self.agent, self.agent.closed), (self.coordinator, self.coordinator.closed)):
            if actor is not by and self.world.now >= self.cut_until:
                self.world.at(LATENCY, lambda actor=actor, closed=closed: actor.do(lambda: closed(self)))  # type: ignore[misc]


class Coordinator(Actor):
    """The coordinator of one term."""

    def __init__(self, world: World, term: int) -> None:
        super().__init__(world)
        self.term, self.members = term, Members()
        self.attempt = 1 if world.elastic else term
        last = max((fence for fence in world.disk.groups if fence[0] == self.attempt), default=None)
        expected = len(world.disk.groups[last]) - 1 if last else world.most + world.spare
        self.groups = Groups(self.attempt, world.least, world.most, ranks_per_node=1, expected=expected)
        world.at(TERM_CHECK_SECONDS, self._check_term)

    def _check_term(self) -> None:
        """Exit if there is a later term; a frozen coordinator does so when it runs again."""
        if self.frozen or self.world.disk.term == self.term:
            self.world.at(TERM_CHECK_SECONDS, self._check_term)
        elif not self.dead:
            self.die()

    def tick(self) -> None:
        self._perform(self.members.tick(self.clock))
        self._decide(self.groups.tick(self.clock))

    def hear(self, wire: Wire, message: Message) -> None:
        if message["say"] == "hello":
            if not wire.greeted and not wire.ended:
                wire.greeted = True
                self._perform(self.members.greet(wire, message, None, self.clock))
        else:
            self._perform(self.members.hear(wire, message, self.clock))

    def closed(self, wire: Wire) -> None:
        wire.ended = True
        self._perform(self.members.close(wire, self.clock))

    def _perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Send):
                self._send(output.connection, output.message)
            elif isinstance(output, Close):
                output.connection.close(self)  # type: ignore[attr-defined]
            else:
                self._decide(self.groups.handle(output, self.clock))

    def _send(self, wire: Any, message: Message) -> None:
        wire.deliver(lambda: wire.agent.do(lambda: wire.agent.hear(wire, message)))

    def _decide(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Tell):
                self._perform(self.members.send(decision.member, decision.message))
            elif isinstance(decision, Reserve):
                self._reserved_soon(self.world.disk.reserve(self.attempt, decision.number))
            elif isinstance(decision, Failed):
                self.world.at(LATENCY, lambda: self.do(lambda: self._decide(self.groups.judge(None, self.clock))))
            elif decision.kind == "group_formed":
                self.world.note(f"coordinator {self.term} forms a group: {dict(decision.fields)}")

    def _reserved_soon(self, number: int) -> None:
        self.world.at(LATENCY, lambda: self.do(lambda: self._decide(self.groups.reserved(number, self.clock))))

    def die(self) -> None:
        self.dead = True
        for agent in self.world.agents:
            if agent.wire is not None and agent.wire.coordinator is self:
                agent.wire.close(self)


class Agent(Actor):
    """The agent of a node, and the ranks of the node as one process."""

    def __init__(self, world: World, node: int) -> None:
        super().__init__(world)
        self.node, self.wire, self.term, self.attempt = node, None, 0, 0
        self.contact: Contact | None = None
        self.ranks = NodeAgent(ranks=1, elastic=world.elastic)
        self.fence: Fence = (0, 0)  # newest group that ranks were started of
        self._connect_at = 0.0
        self._sessions = itertools.count()

    wire: Wire | None

    def tick(self) -> None:
        now = self.clock
        if self.wire is None:
            if now >= self._connect_at:
                self._connect()
        elif self.contact is not None and self.contact.silent_seconds(now) > SILENCE_SECONDS:
            self.wire.close(self)
            self.closed(self.wire)
        elif self.contact is not None and (beat := self.contact.beat(now)):
            self._send(beat)
        if actions := self.ranks.tick(now):
            self._act(actions)

    def _connect(self) -> None:
        """Connect to the newest coordinator; a later term has other sessions."""
        world = self.world
        coordinator = world.coordinators.get(world.disk.term)
        self._connect_at = self.clock + RETRY_SECONDS
        if coordinator is None or coordinator.dead or world.now < self.unreachable_until:
            return
        if self.contact is None or coordinator.term != self.term:
            self.term, self.attempt = coordinator.term, coordinator.attempt
            self.contact = Contact(f"{self.node}/{id(self)}/{next(self._sessions)}")
        self.wire = wire = Wire(self, coordinator)
        hello = self.contact.hello(self.fence, self.clock)
        wire.deliver(lambda: coordinator.do(lambda: coordinator.hear(wire, hello)))

    unreachable_until = 0.0

    def closed(self, wire: Wire) -> None:
        if wire is self.wire:
            self.wire = None
            self._connect()

    def hear(self, wire: Wire, message: Message) -> None:
        if wire is not self.wire or self.contact is None:
            return
        if message["say"] != "welcome":
            received = self.contact.hear(message, self.clock)
            return self._act(self.ranks.take(received, self.clock)) if received is not None else None
        if self.contact.connected:
            return None  # a copy
        begun = self.contact.begun
        try:
            self._send(self.contact.welcome(message, self.clock))
        except SessionEndedError:
            self.contact = None
            wire.close(self)
            return self.closed(wire)
        return None if begun else self._act(self.ranks.joined())

    def _send(self, messages: list[Message]) -> None:
        for message in messages if self.wire is not None else []:
            self._send_one(self.wire, message)  # type: ignore[arg-type]

    def _send_one(self, wire: Wire, message: Message) -> None:
        wire.deliver(lambda: wire.coordinator.do(lambda: wire.coordinator.hear(wire, message)))

    def tell(self, message: Message) -> None:
        if self.contact is not None:
            self._send(self.contact.send(message))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case dict():
                    self.tell(action)
                case Order.BE_READY if self.ranks.stopping:
                    self.leave()
                case Order.BE_READY:
                    self.tell({"say": "ready", "node": self.node, "address": "", "port": 1, "group": self.ranks.group})
                case Start():
                    self.fence = (self.attempt, action.group)
                    self.world.work.start(self.fence, action.node_rank, action.nodes, self)
                case Order.RELEASE:
                    self._act(self.ranks.released(self.world.work.release(self), self.clock))
                case Order.KILL:
                    self.world.work.kill(self)
                case Order.SAVE:
                    self.world.work.save(self.fence)
                case Exit() if self.ranks.stopping:
                    self.leave()
                case Exit():
                    raise ViolationError(f"node {self.node} exits with {action.code}")

    def rank_ended(self, fence: Fence, rank: int, code: int) -> None:
        if fence == self.fence and rank in self.ranks.running:
            self._act(self.ranks.ended({rank: code}))

    def stop(self) -> None:
        """Let the ranks save, and leave; another agent starts later."""
        self.ranks.stopping = True
        if self.ranks.running:
            self.world.work.save(self.fence)
        else:
            self.leave()

    def leave(self) -> None:
        self.tell({"say": "leave"})
        self.die()

    def die(self) -> None:
        """End the agent and its ranks; another agent starts later."""
        self.dead = True
        self.world.work.kill(self)
        if self.wire is not None:
            self.wire.close(self)


@dataclass
class _Group:
    fence: Fence
    nodes: int
    agents: dict[int, Agent] = field(default_factory=dict)  # by rank: ranks that run
    step: int | None = None  # next step; None until the fence is claimed
    saving: bool = False
    broken: bool = False  # a rank is gone


class Work:
    """Ranks of all groups: they take steps together, and notice peers that die, but not peers that freeze."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.groups: dict[Fence, _Group] = {}

    def start(self, fence: Fence, rank: int, nodes: int, agent: Agent) -> None:
        group = self.groups.setdefault(fence, _Group(fence, nodes))
        if group.nodes != nodes or rank in group.agents:
            raise ViolationError(f"group {fence} has two members of rank {rank}, or two sizes: {nodes}, {group.nodes}")
        group.agents[rank] = agent
        started = self.world.disk.groups.get(fence, ())
        if rank in started:
            raise ViolationError(f"rank {rank} of group {fence} is started twice")
        self.world.disk.groups[fence] = (*started, rank)
        if group.broken:
            self._lose_peer_soon(group, rank, agent)
        elif len(group.agents) == nodes:
            self.world.at(STEP_SECONDS, lambda: self._step(group))

    def save(self, fence: Fence) -> None:
        if fence in self.groups:
            self.groups[fence].saving = True

    def kill(self, agent: Agent) -> None:
        for group in self.groups.values():
            for rank, other in list(group.agents.items()):
                if other is agent:
                    self._break(group, rank)

    def release(self, agent: Agent) -> set[int]:
        """Have an agent's rank leave its group, or kill it; returns those that will leave, unless something keeps them."""
        stays = self.world.random.random() < STAYS
        if not stays:
            self.kill(agent)
            return set()
        released: set[int] = set()
        for group in self.groups.values():
            for rank, other in group.agents.items():
                if other is agent:
                    released.add(rank)
                    group.broken = True
                    if self.world.random.random() < LEAVES:
                        self._lose_peer_soon(group, rank, agent)
        return released

    def kill_rank(self, agent: Agent) -> None:
        """Kill an agent's rank by a signal."""
        for group in self.groups.values():
            for rank, other in list(group.agents.items()):
                if other is agent:
                    self._break(group, rank)
                    self._report(group, rank, agent, -9)

    def _break(self, group: _Group, rank: int) -> None:
        """Remove a rank; the others lose a peer if they run."""
        del group.agents[rank]
        group.broken = True
        for other_rank, other in list(group.agents.items()):
            self._lose_peer_soon(group, other_rank, other)

    def _lose_peer_soon(self, group: _Group, rank: int, agent: Agent) -> None:
        self.world.at(self.world.random.random() * 0.1, lambda: self._lose_peer(group, rank, agent))

    def _lose_peer(self, group: _Group, rank: int, agent: Agent) -> None:
        if group.agents.get(rank) is agent and not agent.frozen:
            del group.agents[rank]
            self._report(group, rank, agent, EXIT_LOST_PEER)
        elif agent.frozen:
            self.world.at(0.5, lambda: self._lose_peer(group, rank, agent))

    def _report(self, group: _Group, rank: int, agent: Agent, code: int) -> None:
        agent.do(lambda: agent.rank_ended(group.fence, rank, code))

    def _step(self, group: _Group) -> None:
        if group.broken or len(group.agents) != group.nodes:
            return
        if any(agent.frozen for agent in group.agents.values()):
            self.world.at(STEP_SECONDS, lambda: self._step(group))
            return
        disk = self.world.disk
        if group.step is None:
            stale, group.step = not disk.claim(group.fence), len(disk.steps)
        else:
            stale = not disk.commit(group.step, group.fence)
            group.step += 1
        if stale or group.saving:
            for rank, agent in list(group.agents.items()):
                del group.agents[rank]
                self._report(group, rank, agent, EXIT_LOST_PEER if stale else EXIT_REQUEUE)
            return
        self.world.at(STEP_SECONDS, lambda: self._step(group))


def disturb(world: World) -> None:
    """Inject one random fault."""
    random = world.random
    agent = random.choice(world.agents)
    leader = world.coordinators[world.disk.term]
    seconds = random.choice([0.05, 0.15, 0.3, 1.0, 2.5, 6.0]) * (0.5 + random.random())
    kind = random.choice(
        ["rank", "rank", "node", "node", "freeze", "close", "cut", "leader freezes", "leader dies", "two leaders"]
    )
    world.note(f"fault: {kind}, node {agent.node}, {seconds:.2f} s")
    if kind == "rank":
        world.work.kill_rank(agent)
    elif kind == "node" and not agent.dead:
        agent.die()
        world.at(seconds, lambda: replace(world, agent.node))
    elif kind == "freeze":
        agent.freeze(seconds)
    elif kind == "close" and agent.wire is not None:
        agent.wire.close()
    elif kind == "cut":
        for each in [other for other in world.agents if other is agent or random.random() < 0.3]:
            each.unreachable_until = world.now + seconds
            if each.wire is not None:
                each.wire.cut_until = each.unreachable_until
    elif kind == "leader freezes":
        leader.freeze(seconds)
        if seconds > SILENCE_SECONDS:
            world.at(SILENCE_SECONDS, world.elect)
    elif kind == "leader dies":
        leader.die()
        world.at(seconds, world.elect)
    elif kind == "two leaders":
        world.elect(needed=True)


def let_go(world: World, random: Random) -> None:
    """Have a node save and leave, and come back later."""
    agent, seconds = random.choice(world.agents), 0.1 + 3.0 * random.random()
    if not agent.dead:
        world.note(f"node {agent.node} leaves for {seconds:.2f} s")
        agent.do(agent.stop)
        world.at(seconds, lambda: None if agent.dead else agent.die())  # its time is over
        world.at(seconds, lambda: replace(world, agent.node))


def replace(world: World, node: int) -> None:
    """Start a new agent on a node whose agent is dead."""
    if world.agents[node].dead:
        world.agents[node] = Agent(world, node)


def run_with_spares(seed: int) -> World:
    """Kill ranks, and as many nodes as are spare, which do not come back. Raises ViolationError if a group becomes smaller."""
    world = World(seed, 2, 5, spare=Random(seed).randint(1, 3))
    random, lasting = world.random, 30.0
    world.elect()
    for agent in random.sample(world.agents, world.spare):
        world.at(3.0 + random.random() * lasting / 2, agent.die)
    for _ in range(3):
        world.at(3.0 + random.random() * lasting / 2, lambda: world.work.kill_rank(random.choice(world.agents)))
    world.run_until(lasting)
    sizes = [group.nodes for group in world.work.groups.values()]
    if set(sizes) != {world.most}:
        raise ViolationError(f"seed {seed}: groups of {sizes} nodes, {world.most} are wanted\n" + "\n".join(world.log))
    if sum(bool(agent.ranks.running) for agent in world.agents if not agent.dead) != world.most:
        raise ViolationError(f"seed {seed}: not {world.most} nodes work at the end\n" + "\n".join(world.log))
    return world


def run(seed: int, least_nodes: int, most_nodes: int) -> World:
    """Run the schedule of a seed. Raises ViolationError."""
    world = World(seed, least_nodes, most_nodes)
    random = world.random
    world.elect()
    world.loss, world.delay = random.choice([(0.0, 0.0), (0.02, 0.05), (0.2, 0.5)])
    duration = 2.0 + 8.0 * random.random()
    for _ in range(random.randint(1, 10)):
        world.at(duration * random.random(), lambda: disturb(world))
    resizes = Random(f"{seed} resizes")
    for _ in range(resizes.choice([0, 1, 3]) if world.least < world.most else 0):
        world.at(duration * resizes.random(), lambda: let_go(world, resizes))
    try:
        world.run_until(duration)
        world.loss = world.delay = 0.0
        for actor in [*world.agents, *world.coordinators.values()]:
            actor.thaw()
        while not works(world) and world.now < duration + QUIET_SECONDS:
            world.run_until(world.now + 1.0)
        before = len(world.disk.steps)
        world.run_until(world.now + LASTING_SECONDS)
        check(world, before)
    except Exception as error:
        log = "\n".join(world.log)
        message = f"{type(error).__name__}: {error}\nseed {seed}, nodes {least_nodes}..{most_nodes}, least {world.least}:\n{log}"
        raise ViolationError(message) from error
    return world


def works(world: World) -> bool:
    """Return True if all nodes work in one group."""
    return len({agent.fence for agent in world.agents}) == 1 and all(agent.ranks.running for agent in world.agents)


def check(world: World, steps_before: int) -> None:
    """Raise ViolationError unless all nodes work in one group, which makes steps."""
    if not works(world):
        states = [(agent.node, agent.fence, agent.ranks.running, agent.dead) for agent in world.agents]
        raise ViolationError(f"no group of all {world.most} nodes: {states}")
    if len(world.disk.steps) <= steps_before:
        raise ViolationError(f"the group {world.agents[0].fence} makes no steps")


def _run_one(arguments: tuple[int, int, int]) -> str:
    try:
        run(*arguments)
    except ViolationError as error:
        return str(error)
    return ""


def main() -> None:
    """Run schedules until one violates a property."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the following ones have the next numbers")
    parser.add_argument("--nodes", default="3..9")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    least, _, most = arguments.nodes.partition("..")
    schedules = ((seed, int(least), int(most or least)) for seed in range(arguments.seed, arguments.seed + arguments.schedules))
    with multiprocessing.Pool(arguments.jobs) as pool:
        for number, failure in enumerate(pool.imap(_run_one, schedules, chunksize=20)):
            if failure:
                print(failure)
                sys.exit(1)
            if number % 10_000 == 9_999:
                print(f"{number + 1} schedules", flush=True)
    print(f"{arguments.schedules} schedules from seed {arguments.seed} on: no violation")


if __name__ == "__main__":
    main()
