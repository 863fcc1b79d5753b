"""The ranks engine: the agent's session with the group server, and the ranks that it starts, watches and replaces."""

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ropewalk.cluster.engines.activity import RankProcess
from ropewalk.cluster.engines.crashes import newest_checkpoint
from ropewalk.cluster.engines.hang import Formation, GroupWatch, Hangs
from ropewalk.cluster.engines.local_ranks import LocalRanks
from ropewalk.cluster.engines.watch import Watch
from ropewalk.cluster.errors import NotReadyError
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.membership.link import Link
from ropewalk.cluster.membership.node_agent import Action, Exit, NodeAgent, Order, Start
from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.memory.server import MemoryServer
from ropewalk.cluster.process.forking import refuse_cuda
from ropewalk.cluster.process.memory_limits import kills
from ropewalk.cluster.process.output import rank_log
from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.process.signals import ShutdownGate
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_servers import group_server_address
from ropewalk.cluster.run.key import sign
from ropewalk.cluster.run.names import GROUP_KEY, OUT_OF_MEMORY
from ropewalk.cluster.secrets.variables import NO_SECRETS, RunSecrets

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.05  # between two looks at the heartbeats of ranks
CONNECT_SECONDS = 120.0  # for the group server to start
RECONNECT_SECONDS = 20.0  # without a connection to the group server
RETRY_SECONDS = 0.05
UNREACHABLE_SECONDS = 2.0  # between two connections to a group server whose node does not answer


@dataclass(frozen=True, kw_only=True)
class RanksNode:
    """Settings of this node in an attempt."""

    run: RunDir
    attempt: int
    index: int
    most_nodes: int
    elastic: bool = False  # the group may go on with other nodes, or another number of them
    ranks_per_node: int
    address: str
    stop_flag: Path
    gate: ShutdownGate
    hung_seconds: float | None = None  # the key `retries.hung_seconds`
    secrets: RunSecrets = NO_SECRETS
    memory: Path | None = None  # folder in memory for copies of the training state, if the job wants it
    processes: dict[int, RankProcess] = field(default_factory=dict)  # of the present group on this node, by rank

    @property
    def shared_log(self) -> str:
        """Name of the log that the node's ranks share if the group may be large, except rank 0, which has its own."""
        name = rank_log(1, self.index, self.most_nodes * self.ranks_per_node)
        return "" if name == rank_log(1, self.index, 1) else name

    @property
    def regroup_flag(self) -> Path:
        """File that exists when the ranks have to save so that a new group can form."""
        return self.stop_flag.with_name("regroup")


def run_ranks(node: RanksNode) -> int:
    """Join groups with the other nodes, run the entry on every rank, repeat after lost ranks, and return the exit code."""
    refuse_cuda()
    if socket.gethostbyname(node.address).startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # virtual nodes; the host's name may not resolve
    return _Engine(node).run()


class _Engine:
    """The ranks of this node, and the session in which the group server decides about them."""

    def __init__(self, node: RanksNode) -> None:
        self.node, self.agent = node, NodeAgent(node.ranks_per_node, node.elastic)
        self._key = read_afresh(node.run.attempt_dir(node.attempt) / GROUP_KEY).decode()
        key = sign(self._key, "memory", f"{node.run.id}.{node.attempt}".encode()).hex()
        self._memory = MemoryServer(node.memory, node.address, key) if node.memory is not None else None
        self._link: Link | None = None
        self._joined = False
        self._server: tuple[str, int] | None = None
        self._retry_at = 0.0  # time to connect again to a server that does not answer; a new one may take over before
        self._connect_by = time.monotonic() + CONNECT_SECONDS
        self._watch: GroupWatch | None = None
        self._hangs = Hangs()
        self._next_look = 0.0
        self._votes: dict[str, bool] = {}
        self._exit_code: int | None = None
        self._kills = kills()
        context = JobContext(
            run=node.run,
            attempt=node.attempt,
            stop_flag=node.stop_flag,
            regroup_flag=node.regroup_flag,
            hung_seconds=node.hung_seconds,
            shared_log=node.shared_log,
            memory=self._memory.access if self._memory is not None else None,
        )
        self.ranks = LocalRanks(node.ranks_per_node, node.secrets, context)

    def run(self) -> int:
        self.node.gate.pause()
        self.ranks.prepare(time.monotonic())  # a node that joins must not delay the others
        try:
            while self._exit_code is None:
                self._step()
        finally:
            self._watch = None
            self.ranks.close()
            if self._link is not None:
                self._link.close()
            if self._memory is not None:
                self._memory.close()
        return self._exit_code

    def _step(self) -> None:
        """Wait for messages and ranks that end, and act on them."""
        link = self._connected()
        if link is None:
            time.sleep(RETRY_SECONDS)
        else:
            messages = link.listen(WATCH_SECONDS, self.ranks.handles)
            if link.answered and not self._joined:
                self._joined = True
                self._act(self.agent.joined())
            for message in messages:
                self._act(self.agent.take(message, time.monotonic()))
        if codes := self.ranks.reap(time.monotonic()):
            self._record_kills(codes)
            self.agent.stopping = self.node.stop_flag.exists() and not self.ranks.hand_over
            self._act(self.agent.ended(codes))
            if self.agent.has_nothing_to_save and not self.ranks.hand_over:
                self.node.gate.pause()
        self._act(self.agent.tick(time.monotonic()))
        self.ranks.prepare(time.monotonic())
        self._look_for_hangs()

    def _record_kills(self, codes: Mapping[int, int]) -> None:
        """Record that the machine killed a rank because memory ran out, before the next group forms."""
        if -signal.SIGKILL in codes.values() and kills() > self._kills:
            node = self.node
            node.run.event(OUT_OF_MEMORY, node=node.index, attempt=node.attempt, group=self.agent.group)
        self._kills = kills()

    def _connected(self) -> Link | None:
        """Return the connection to the group server, opened again if it is lost; None if that is not possible now."""
        if self._link is not None and not self._link.lost:
            if self._link.answered:
                self._connect_by = time.monotonic() + RECONNECT_SECONDS
            return self._link
        if self._link is not None:
            log.warning("lost the group server: %s", self._link.lost)
        self._link, self._joined = None, False
        address = group_server_address(self.node.run.attempt_dir(self.node.attempt))
        if address != self._server or time.monotonic() >= self._retry_at:
            self._server = address
            self._connect()
        if self._link is None and time.monotonic() > self._connect_by:
            raise NotReadyError(f"{address}: the process that forms groups of ranks does not answer")
        return self._link

    def _connect(self) -> None:
        """Connect to the group server, if it can be reached."""
        if self._server is None:
            return
        name, fence = f"node {self.node.index}", (self.node.attempt, self.agent.group)
        try:
            self._link = Link(*self._server, self._key, introduction={"name": name}, fence=fence, patience_seconds=30.0)
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            self._retry_at = time.monotonic() + (0.0 if refused else UNREACHABLE_SECONDS)
            # no answer at all: its node is gone, and ranks of the group with it, for which the others could wait in vain
            if not refused and self.node.stop_flag.exists() and not self.ranks.hand_over:
                self._act(self.agent.kill())

    def _tell(self, message: Message) -> None:
        if self._link is not None and self._joined:
            self._link.send(message)

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case dict():
                    self._tell(action)
                case Order.BE_READY:
                    self._watch = None
                    if not self.ranks.hand_over:  # else a stop waits until the next group has saved
                        self.node.gate.pause()
                    node, port = self.node, free_port(self.node.address)
                    fields = {"node": node.index, "address": node.address, "port": port, "group": self.agent.group}
                    self._tell({"say": "ready", **fields})
                case Start():
                    self._start(action)
                case Order.RELEASE:
                    self._watch = None
                    self._act(self.agent.released(self.ranks.release(self.agent.group), time.monotonic()))
                case Order.KILL:
                    self._watch = None
                    self.ranks.kill()
                case Order.SAVE:
                    log.info("another node joins or leaves: the ranks have to save")
                    self.node.regroup_flag.touch()
                case Order.RECORD if self._watch is not None:
                    self._watch.start_recording()
                case Exit():
                    self._tell({"say": "leave"})
                    self._exit_code = action.code

    def _start(self, start: Start) -> None:
        node = self.node
        node.gate.resume()
        node.regroup_flag.unlink(missing_ok=True)
        prefix = sign(self._key, "store", f"{node.run.id}.{node.attempt}".encode(), str(start.group).encode()).hex()
        if self._memory is not None:
            self._memory.fence = node.attempt, start.group
        ranks = self.ranks.start(start, prefix)
        node.processes.clear()
        node.processes.update(ranks)
        formation = Formation(run=node.run, attempt=node.attempt, node=node.index, group=start.group)
        watch = Watch(ranks, start.group, start.nodes * node.ranks_per_node)
        self._watch = GroupWatch(formation, watch, self._hangs, lambda: newest_checkpoint(node.run))
        self._votes = {}

    def _look_for_hangs(self) -> None:
        """Tell the group server that the ranks are silent, or that stacks are recorded, also those of a stopped rank."""
        watch, group = self._watch, self.agent.group
        if watch is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + WATCH_SECONDS
        if watch.is_recorded:
            self._watch = None
            self._tell({"say": "recorded", "group": group})
        elif not watch.is_recording:
            votes = watch.look()
            if watch.has_stopped_rank:
                watch.start_recording()
            elif votes != self._votes:
                self._votes = votes
                self._tell({"say": "votes", "group": group, **votes})
