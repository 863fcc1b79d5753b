"""Rendezvous of the nodes of a group, with numbered formations and nodes that leave.

Based on torch's c10d rendezvous; tests/cluster/test_private_interfaces.py lists the private names of torch that it uses.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousExitOp

from ropewalk.cluster.engines.activity import RankProcess
from ropewalk.cluster.engines.signed_rendezvous import SignedHandler, signed_handler
from ropewalk.cluster.process.ports import await_listener
from ropewalk.cluster.process.signals import ShutdownGate
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between two reads of the rendezvous state while a group forms
POLLING_NODES = 16  # with more nodes each polls less often, to limit the load of the store
STATE_SECONDS = 1.0  # maximum age of torch's copy of the state while the group works
REGROUP_SECONDS = 120.0  # for ranks to save before they are killed, when a node wants to join
LEAVE_SECONDS = 5.0
STORE_SECONDS = 60.0  # for the store to start; torch then waits for another minute
PEER_LOST_SECONDS = 3.0  # for ranks to notice a lost node by themselves, before they are killed
FORM_TRIES = 3
MOST_RANK_LOGS = 64  # ranks of a group that have a log each
# Short timeouts, for nodes that answer within a second; a job of hundreds of nodes needs longer ones.
RENDEZVOUS = {
    "join_timeout": 600,
    "last_call_timeout": 1,
    "close_timeout": 5,
    "heartbeat_timeout": 3,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 3,
    "is_host": "0",
}


@dataclass(frozen=True, kw_only=True)
class RanksNode:
    """Settings of this node in an attempt."""

    run: RunDir
    attempt: int
    index: int
    least_nodes: int
    most_nodes: int
    ranks_per_node: int
    address: str
    rendezvous: str  # HOST:PORT of the store
    stop_flag: Path
    gate: ShutdownGate
    hung_seconds: float | None = None  # the key `retries.hung_seconds`
    processes: dict[int, RankProcess] = field(default_factory=dict)  # of the present group on this node, by rank

    @property
    def elastic(self) -> bool:
        """True if the number of nodes of the group may change."""
        return self.least_nodes < self.most_nodes

    @property
    def shared_log(self) -> str:
        """Name of the log that the node's ranks share if the group may be large, except rank 0, which has its own."""
        return f"ranks-{self.index}.log" if self.most_nodes * self.ranks_per_node > MOST_RANK_LOGS else ""

    @property
    def regroup_flag(self) -> Path:
        """File that exists when the ranks have to save so that a new group can form."""
        return self.stop_flag.with_name("regroup")


@dataclass
class RankArguments:
    """Arguments of a node's ranks. torch pickles them whenever it forks a rank, so the last two are of the newest formation."""

    run: Path
    attempt: int
    stop_flag: Path
    regroup_flag: Path
    agent_pid: int
    hung_seconds: float | None
    shared_log: str = ""
    group: int = 0
    store_prefix: str = ""


class NumberedRendezvous(RendezvousHandler):
    """torch's rendezvous, extended to pass the number of the formation to the ranks as their fencing number.

    torch kills a group at once when a node wants to join. Here the group is asked to save first.
    """

    def __init__(self, inner: SignedHandler, arguments: RankArguments, node: RanksNode) -> None:
        self._inner, self._arguments, self._node, self._run = inner, arguments, node, node.run
        self._regroup_at: float | None = None  # monotonic time at which the ranks were asked to save
        self._members: dict[Any, int] = {}  # torch's node descriptions of the group, with the numbers of the nodes
        self._info: RendezvousInfo | None = None  # of the group
        self._peer_lost_at: float | None = None
        self._next_check = 0.0
        self._marked_spare = False

    def next_rendezvous(self) -> RendezvousInfo:
        """Form the next group with the other nodes. Never returns once the agent shuts down."""
        self._node.gate.pause()
        self._node.regroup_flag.unlink(missing_ok=True)
        self._regroup_at = self._peer_lost_at = None
        info = self._form()
        self._node.gate.resume()
        state = self._inner._state_holder.state
        # the round grows with every formation and is equal on all nodes
        self._arguments.group, self._members = state.round + 1, dict(state.participants)
        self._info, self._marked_spare = info, False
        self._arguments.store_prefix = self._inner.store_prefix(self._arguments.group)
        if info.rank == 0:
            self._run.event("group_formed", group=self._arguments.group, nodes=info.world_size)
        return info

    def _form(self) -> RendezvousInfo:
        """Join a group; join another one if its first node is lost before it has published the address of rank 0."""
        holder = self._inner._state_holder
        # the default would delay the group by a second, the age of the cached state
        holder._cache_duration = min(STATE_SECONDS, POLL_SECONDS * max(1.0, self._node.most_nodes / POLLING_NODES))  # type: ignore[attr-defined]
        try:
            for _ in range(FORM_TRIES - 1):
                try:
                    return self._inner.next_rendezvous()
                except DistStoreError as error:
                    log.warning("the group's first node was lost before it published the address of rank 0: %s", error)
            return self._inner.next_rendezvous()
        finally:
            holder._cache_duration = STATE_SECONDS  # type: ignore[attr-defined]

    def peer_lost(self) -> bool:
        """Return True if a node of the group is lost, and the ranks had time to notice that by themselves.

        Starting ranks do not notice it: they wait for the lost node's ranks. A node is lost when it has left the rendezvous
        and the supervisor has recorded its loss; a node that only misses its heartbeat may be slow.
        """
        now = time.monotonic()
        missing = self._missing()
        if not missing or now < self._next_check:
            return False
        self._next_check = now + 1.0
        if self._peer_lost_at is None and missing & _lost_addresses(self._run, self._node.attempt):
            self._peer_lost_at = now
        return self._peer_lost_at is not None and now - self._peer_lost_at > PEER_LOST_SECONDS

    def mark_spare(self) -> None:
        """Tell the other nodes that no rank of this one has work: the group goes on if this node is lost or leaves."""
        if self._info is not None and not self._marked_spare:
            self._marked_spare = True
            self._info.store.set(_spare_key(self._info.rank), "")

    def _missing(self) -> set[str]:
        """Return the addresses of members with work that are no longer in the rendezvous."""
        gone = self._members.keys() - self._inner._state_holder.state.participants.keys()
        for node in gone:
            if self._info is not None and self._info.store.check([_spare_key(self._members[node])]):
                del self._members[node]
        return {node.addr for node in gone if node in self._members}

    @property
    def formation(self) -> int:
        """Number of the newest group."""
        return self._arguments.group

    def leave(self) -> None:
        """Remove this node from the group, so that the others need not wait for its heartbeat to time out."""
        try:
            self._inner._op_executor.run(_RendezvousExitOp(), time.monotonic() + LEAVE_SECONDS)
        except RendezvousError as error:  # the store may be gone already
            log.info("the other nodes could not be notified that this node left the group: %s", error)
        self._inner._stop_heartbeats()

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        """Return the number of nodes that want to join, or 0 as long as the ranks may still save: torch then kills the ranks."""
        waiting = self._inner.num_nodes_waiting()
        # a member of this group is waiting again: its ranks are gone, and the other ranks may wait for them forever
        if waiting and self._missing() & {node.addr for node in self._inner._state_holder.state.wait_list}:
            return waiting
        if waiting and self._regroup_at is None:
            self._regroup_at = time.monotonic()
            self._node.regroup_flag.touch()
        late = self._regroup_at is not None and time.monotonic() - self._regroup_at > REGROUP_SECONDS
        return waiting if late else 0

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        """Close the rendezvous for all nodes, and return True if that succeeded."""
        return self._inner.shutdown()

    @property
    def use_agent_store(self) -> bool:
        """Return False: rank 0 opens a new store for each formation."""
        return False


def join_rendezvous(node: RanksNode, arguments: RankArguments) -> NumberedRendezvous:
    """Wait for the attempt's store, and open the rendezvous in it."""
    poll_rendezvous_every(POLL_SECONDS)
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=node.rendezvous,
        run_id=f"{node.run.id}.{node.attempt}",
        min_nodes=node.least_nodes,
        max_nodes=node.most_nodes,
        local_addr=node.address,
        **RENDEZVOUS,
    )
    host, _, port = node.rendezvous.rpartition(":")
    await_listener(host, int(port), STORE_SECONDS)  # torch itself would try once per second
    return NumberedRendezvous(signed_handler(parameters, node.run.attempt_dir(node.attempt)), arguments, node)


def _spare_key(node: int) -> str:
    return f"ropewalk/spare/{node}"


def poll_rendezvous_every(interval: float) -> None:
    """Make torch poll the rendezvous at this interval, in seconds, while a group forms.

    By default torch polls once per second, and waits up to 0.3 s before the first poll. At each poll it also inspects the
    whole stack for a function name that only its event recorder uses, which costs up to a second per formation.
    """
    dynamic_rendezvous._delay = lambda seconds: time.sleep(interval)  # type: ignore[attr-defined]
    dynamic_rendezvous.get_method_name = lambda depth=2: ""


def _lost_addresses(run: RunDir, attempt: int) -> set[str]:
    """Return the addresses of the nodes that an attempt has lost or released."""
    kinds = {"node_lost", "node_left", "node_left_early"}
    gone = {e["node"] for e in run.read_events(afresh=True) if e["event"] in kinds and e["attempt"] == attempt}
    return {line["address"] for line in read_lines(run.attempt_dir(attempt) / AGENTS) if line["node"] in gone}
