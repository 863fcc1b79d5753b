"""The rendezvous of a group: the nodes that form it, the number of each formation, and the nodes that leave it.

It is torch's c10d rendezvous with signed state; tests/cluster/test_private_interfaces.py names what of torch's own it touches.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousExitOp

from ropewalk.cluster.engines.signed_rendezvous import signed_handler
from ropewalk.cluster.process.ports import await_listener
from ropewalk.cluster.process.signals import ShutdownGate
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks whether the group is formed
LOOKS_AT_ONCE = 16  # nodes that may look so often; of more each looks less often, so that the store can serve them
STATE_SECONDS = 1.0  # how old what torch knows of the group may be, while it works
REGROUP_SECONDS = 120.0  # what ranks may take to save before they are ended, when a node wants to join
LEAVE_SECONDS = 5.0
STORE_SECONDS = 60.0  # what the store may take to begin; then torch itself waits as long again
PEER_LOST_SECONDS = 3.0  # what ranks may take to notice that a node of their group is gone, before they are ended
FORM_TRIES = 3
# Tight, for nodes that answer within a second; a job of hundreds of nodes wants longer ones.
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
    """This node's place in an attempt: what the backend told its agent."""

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
    hung_steps: float | None = None  # as `retries.hung_steps` says

    @property
    def elastic(self) -> bool:
        """Whether the group may have more or fewer nodes."""
        return self.least_nodes < self.most_nodes

    @property
    def regroup_flag(self) -> Path:
        """A file beside the stop flag; it exists when the ranks are to save and form the group anew."""
        return self.stop_flag.with_name("regroup")


@dataclass
class RankArguments:
    """What every rank of a node is given. torch pickles it when it forks a rank: `group` is that of the newest formation."""

    run: Path
    attempt: int
    stop_flag: Path
    regroup_flag: Path
    agent_pid: int
    hung_steps: float | None
    group: int = 0


class NumberedRendezvous(RendezvousHandler):
    """torch's rendezvous that also tells the ranks which formation of the group they are: their fencing number.

    torch ends a group at once when a node wants to join. Here the group is asked to save first.
    """

    def __init__(self, inner: RendezvousHandler, arguments: RankArguments, node: RanksNode) -> None:
        self._inner, self._arguments, self._node, self._run = inner, arguments, node, node.run
        self._asked_at: float | None = None
        self._members: set[Any] = set()  # the group's nodes, as torch knows them
        self._peer_lost_at: float | None = None
        self._next_look = 0.0

    def next_rendezvous(self) -> RendezvousInfo:
        """Form the next group with the other nodes. Does not return once the agent shuts down."""
        self._node.gate.pause()
        self._node.regroup_flag.unlink(missing_ok=True)
        self._asked_at = self._peer_lost_at = None
        info = self._form()
        self._node.gate.resume()
        state = self._inner._state_holder.state  # type: ignore[attr-defined]
        # the round is the only number that grows with every formation and is the same on every node
        self._arguments.group, self._members = state.round + 1, set(state.participants)
        if info.rank == 0:
            self._run.event("group_formed", group=self._arguments.group, nodes=info.world_size)
        return info

    def _form(self) -> RendezvousInfo:
        """Join a group, whose first node says where the ranks meet; join another if that node is gone before it does."""
        holder = self._inner._state_holder  # type: ignore[attr-defined]
        # else all nodes but the last to come would look at a copy, a second old
        holder._cache_duration = min(STATE_SECONDS, LOOK_SECONDS * max(1.0, self._node.most_nodes / LOOKS_AT_ONCE))
        try:
            for _ in range(FORM_TRIES - 1):
                try:
                    return self._inner.next_rendezvous()
                except DistStoreError as error:
                    log.warning("the group's first node was lost before it published the address of rank 0: %s", error)
            return self._inner.next_rendezvous()
        finally:
            holder._cache_duration = STATE_SECONDS

    def peer_lost(self) -> bool:
        """Return whether a node of the group is gone, and the ranks had time to notice.

        Ranks that are just starting do not notice: they wait for the lost node's ranks to join them. A node counts as gone
        when it has left the rendezvous and the supervisor has marked it lost; one that only misses its heartbeat may be slow.
        """
        now = time.monotonic()
        missing = self._missing()
        if not missing or now < self._next_look:
            return False
        self._next_look = now + 1.0
        if self._peer_lost_at is None and missing & _lost_addresses(self._run, self._node.attempt):
            self._peer_lost_at = now
        return self._peer_lost_at is not None and now - self._peer_lost_at > PEER_LOST_SECONDS

    def _missing(self) -> set[str]:
        """The addresses of the members that are not in the rendezvous any more."""
        return {node.addr for node in self._members - set(self._inner._state_holder.state.participants)}  # type: ignore[attr-defined]

    @property
    def formation(self) -> int:
        """The number of the group that was formed last."""
        return self._arguments.group

    def leave(self) -> None:
        """Take this node out of the group, so that the others need not wait until they miss its heartbeat."""
        try:
            self._inner._op_executor.run(_RendezvousExitOp(), time.monotonic() + LEAVE_SECONDS)  # type: ignore[attr-defined]
        except RendezvousError as error:  # the store may be gone already
            log.info("left the group without telling the other nodes: %s", error)
        self._inner._stop_heartbeats()  # type: ignore[attr-defined]

    def get_backend(self) -> str:
        """Return the name of torch's rendezvous backend."""
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        """Return whether the group has finished, so that nobody can join it any more."""
        return self._inner.is_closed()

    def set_closed(self) -> None:
        """Mark the group as finished."""
        self._inner.set_closed()  # type: ignore[no-untyped-call]

    def num_nodes_waiting(self) -> int:
        """Return how many nodes want to join, once the ranks have had time to save; torch ends the ranks then."""
        waiting = self._inner.num_nodes_waiting()
        # one of this very group is back: its ranks are gone, and those that wait for them may wait without end
        if waiting and self._missing() & {node.addr for node in self._inner._state_holder.state.wait_list}:  # type: ignore[attr-defined]
            return waiting
        if waiting and self._asked_at is None:
            self._asked_at = time.monotonic()
            self._node.regroup_flag.touch()
        late = self._asked_at is not None and time.monotonic() - self._asked_at > REGROUP_SECONDS
        return waiting if late else 0

    def get_run_id(self) -> str:
        """Return the id under which the nodes of this attempt meet."""
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        """Close the rendezvous for all nodes; returns whether that succeeded."""
        return self._inner.shutdown()

    @property
    def use_agent_store(self) -> bool:
        """Return False: rank 0 opens a store of its own for each formation."""
        return False


def join_rendezvous(node: RanksNode, arguments: RankArguments) -> NumberedRendezvous:
    """Wait for the attempt's store and open its rendezvous."""
    poll_rendezvous_every(LOOK_SECONDS)
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
    await_listener(host, int(port), STORE_SECONDS)  # torch looks once a second
    return NumberedRendezvous(signed_handler(parameters, node.run.attempt_dir(node.attempt)), arguments, node)


def poll_rendezvous_every(interval: float) -> None:
    """Make torch poll the rendezvous at this interval, in seconds, until a group is formed.

    torch itself polls once a second, which every node pays but the last to come, and waits up to 0.3 s before the first poll.
    At each poll it also reads the source of the whole stack, for a function's name that only a recorder of events would use:
    up to a second a formation on a busy machine.
    """
    dynamic_rendezvous._delay = lambda seconds: time.sleep(interval)  # type: ignore[attr-defined]
    dynamic_rendezvous.get_method_name = lambda depth=2: ""


def _lost_addresses(run: RunDir, attempt: int) -> set[str]:
    """The addresses of the nodes that an attempt has lost or let go."""
    kinds = {"node_lost", "node_left", "node_left_early"}
    gone = {e["node"] for e in run.read_events(afresh=True) if e["event"] in kinds and e["attempt"] == attempt}
    return {line["address"] for line in read_lines(run.attempt_dir(attempt) / AGENTS) if line["node"] in gone}
