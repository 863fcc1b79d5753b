"""The ranks engine: torch.distributed.elastic in this process, ranks forked from a server that has imported everything."""

import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    dynamic_rendezvous,
)
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousGracefulExitError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousExitOp

from cluster.engines.entry import configure_logging, die_with_parent, redirect_output, run_entry
from cluster.engines.hang import Agreement, Formation, GroupWatch, Hangs
from cluster.engines.heartbeat import heart_file
from cluster.engines.ports import await_listener
from cluster.engines.signed_rendezvous import signed_handler
from cluster.engines.stacks import answer, stacks_file
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE, StaleAttemptError
from cluster.process.forking import forked_interpreters, refuse_cuda
from cluster.process.signals import ShutdownGate, exit_on_sigterm_from, stop_signals_blocked
from cluster.run.context import JobContext
from cluster.run.directory import RunDir
from cluster.run.files import read_lines
from cluster.supervise.allocation import AGENTS

log = logging.getLogger(__name__)

MONITOR_SECONDS = 0.05
LOOK_SECONDS = 0.05  # between two looks whether the group is formed
LOOKS_AT_ONCE = 16  # nodes that may look so often; of more each looks less often, so that the store can serve them
STATE_SECONDS = 1.0  # how old what torch knows of the group may be, while it works
EXIT_BARRIER_SECONDS = 30.0
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
class Node:
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
    departure: ShutdownGate
    hung_steps: float | None = None  # as `retries.hung_steps` says

    @property
    def elastic(self) -> bool:
        """The group may have more or fewer nodes."""
        return self.least_nodes < self.most_nodes

    @property
    def regroup_flag(self) -> Path:
        """Beside the stop flag: save, and form the group anew."""
        return self.stop_flag.with_name("regroup")


@dataclass
class _Group:
    """Which formation of ranks is about to start; pickled into each rank at the moment it is forked."""

    number: int = 0
    hung_steps: float | None = None


class _NumberedRendezvous(RendezvousHandler):
    """torch's c10d rendezvous that also tells the ranks which formation they are: their fencing number.

    torch ends a group at once when a node wants to join. Here the group is asked to save first.
    """

    def __init__(self, inner: RendezvousHandler, group: _Group, node: Node) -> None:
        self._inner, self._group, self._node, self._run = inner, group, node, node.run
        self._asked_at: float | None = None
        self._members: set[Any] = set()  # the group's nodes, as torch knows them
        self._peer_lost_at: float | None = None
        self._next_look = 0.0

    def next_rendezvous(self) -> RendezvousInfo:
        self._node.departure.pause()
        self._node.regroup_flag.unlink(missing_ok=True)
        self._asked_at = self._peer_lost_at = None
        info = self._form()
        self._node.departure.resume()
        state = self._inner._state_holder.state  # type: ignore[attr-defined]
        # the round is the only number that grows with every formation and is the same on every node
        self._group.number, self._members = state.round + 1, set(state.participants)
        if info.rank == 0:
            self._run.event("group_formed", group=self._group.number, nodes=info.world_size)
        return info

    def _form(self) -> RendezvousInfo:
        """The first node tells the others where its ranks meet. If it is gone before it does, they form another group."""
        holder = self._inner._state_holder  # type: ignore[attr-defined]
        # else all nodes but the last to come would look at a copy, a second old
        holder._cache_duration = min(STATE_SECONDS, LOOK_SECONDS * max(1.0, self._node.most_nodes / LOOKS_AT_ONCE))
        try:
            for _ in range(FORM_TRIES - 1):
                try:
                    return self._inner.next_rendezvous()
                except DistStoreError as error:
                    log.warning("the group's first node is gone before it has said where to meet: %s", error)
            return self._inner.next_rendezvous()
        finally:
            holder._cache_duration = STATE_SECONDS

    def peer_lost(self) -> bool:
        """A node of the group is gone, and the ranks had time to notice. Those that are just starting do not: they wait for
        its ranks to join them. Gone is what has left the rendezvous and was buried by whoever carries the run: without a
        heartbeat alone, a node may be only slow.
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
        return self._group.number

    def leave(self) -> None:
        """Take this node out of the group; the others need not wait until they miss its heartbeat."""
        try:
            self._inner._op_executor.run(_RendezvousExitOp(), time.monotonic() + LEAVE_SECONDS)  # type: ignore[attr-defined]
        except RendezvousError as error:  # the store may be gone already
            log.info("left without a word to the others: %s", error)
        self._inner._stop_heartbeats()  # type: ignore[attr-defined]

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()  # type: ignore[no-untyped-call]

    def num_nodes_waiting(self) -> int:
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
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()

    @property
    def use_agent_store(self) -> bool:
        return False


def _lost_addresses(run: RunDir, attempt: int) -> set[str]:
    """The addresses of the nodes that an attempt has lost or let go."""
    gone = {
        e["node"] for e in run.read_events(afresh=True) if e["event"] in {"node_lost", "node_left"} and e["attempt"] == attempt
    }
    return {line["address"] for line in read_lines(run.attempt_dir(attempt) / AGENTS) if line["node"] in gone}


class _Agent(LocalElasticAgent):
    """torch's agent, which also says who died and stops retrying what retrying cannot mend."""

    _watch: GroupWatch  # of the group that was formed last

    def __init__(self, node: Node, bugs: "_Bugs", hangs: Hangs, handler: _NumberedRendezvous, spec: WorkerSpec) -> None:
        super().__init__(
            spec, DefaultLogsSpecs(), start_method="forkserver", exit_barrier_timeout=EXIT_BARRIER_SECONDS, shutdown_timeout=5
        )
        self._node, self._bugs, self._hangs, self._handler = node, bugs, hangs, handler
        self.exit_code = EXIT_FAILED

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        super()._initialize_workers(worker_group)
        for process in self._pcontext._pc.processes:  # type: ignore[union-attr]
            process.terminate = process.kill  # torch ends by it the others on the node when one is lost; see `_shutdown`
        formed: Any = worker_group  # torch declares what it fills in later as None
        run, flag = self._node.run, self._node.stop_flag
        self._watch = GroupWatch(
            Formation(run=run, attempt=self._node.attempt, node=self._node.index, group=self._handler.formation),
            {worker.global_rank: heart_file(flag, worker.local_rank) for worker in formed.workers},
            Agreement(formed.store, formed.group_world_size),
            self._hangs,
            lambda: _newest_step(run),
        )

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 30) -> None:
        """By SIGKILL: at SIGTERM a rank leaves at once too, but one that is stopped or stuck would be waited for."""
        super()._shutdown(signal.SIGKILL, timeout)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY and self._node.elastic and self._handler.peer_lost():
            log.warning("a node of the group is gone, and its ranks are waited for: the group forms anew")
            return self._form_anew()
        if result.state == WorkerState.HEALTHY and self._watch.hung():
            log.warning("all ranks of the group stand still: their stacks are taken, and the group forms anew")
            workers, flag = worker_group.workers, self._node.stop_flag
            pids = {worker.global_rank: int(worker.id) for worker in workers}
            self._watch.record(pids, {worker.global_rank: stacks_file(flag, worker.local_rank) for worker in workers})
            return self._form_anew()
        if result.state == WorkerState.FAILED:
            codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
            # torch ends the other ranks of the node itself: only the first to go tells a cause
            for rank, failure in result.failures.items():
                self._node.run.event(
                    "rank_lost", rank=rank, node=self._node.index, exit_code=failure.exitcode, attempt=self._node.attempt
                )
            self.exit_code = self._judge(set(codes.values()))
            if self.exit_code != EXIT_LOST_PEER:
                self._remaining_restarts = 0
        return result

    def _form_anew(self) -> RunResult:
        """End this node's ranks; torch counts it as a disturbance and looks for the other nodes."""
        self._shutdown()
        self.exit_code = EXIT_LOST_PEER
        return RunResult(state=WorkerState.FAILED)

    def _judge(self, codes: set[int]) -> int:
        """EXIT_LOST_PEER: form a new group; anything else: leave with that code."""
        if EXIT_NEVER_RETRY in codes:
            return EXIT_NEVER_RETRY
        if EXIT_FAILED not in codes:  # a signal (kill, out of memory, a dead peer): disturbances, not bugs
            return EXIT_LOST_PEER
        return EXIT_LOST_PEER if self._bugs.allow_another(_newest_step(self._node.run)) else EXIT_FAILED


@dataclass
class _Bugs:
    """How often ranks failed by themselves since the last progress."""

    allowed: int
    count: int = 0
    progress: int = -1

    def allow_another(self, progress: int) -> bool:
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress
        return self.count <= self.allowed


def _newest_step(run: RunDir) -> int:
    """The newest checkpointed step: a bug after it is not the bug before it."""
    return max((int(e.get("step", 0)) for e in run.read_events(afresh=True) if e["event"] == "checkpoint"), default=0)


def start_forkserver(preload: list[str]) -> None:
    """Fork the server that ranks are forked from, so that they find imported what costs seconds.

    Call it when that is loaded, while this process has no threads. Does nothing if the server runs. Raises ConfigError where
    CUDA runs already.
    """
    refuse_cuda()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cluster.engines.ranks", *preload])
    with stop_signals_blocked():
        multiprocessing.resource_tracker.ensure_running()
    # once more: it lifts the block of SIGTERM when it has started
    with stop_signals_blocked(), forked_interpreters():
        multiprocessing.forkserver.ensure_running()


def plain_torch_logging() -> None:
    """Let torch log through our handler. Its own formatter imports torch._dynamo, 2 to 4 s, for the first exception
    that it formats: which is that of the rank whose loss is to be made good in that time.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def poll_rendezvous_every(interval: float) -> None:
    """Make torch poll the rendezvous at this interval, in seconds, until a group is formed.

    torch itself polls once a second, which every node pays but the last to come, and waits up to 0.3 s before the first poll.
    At each poll it also reads the source of the whole stack, for a function's name that only a recorder of events would use:
    up to a second a formation on a busy machine.
    """
    dynamic_rendezvous._delay = lambda seconds: time.sleep(interval)  # type: ignore[attr-defined]
    dynamic_rendezvous.get_method_name = lambda depth=2: ""


def run_ranks(node: Node, bugs_allowed: int, restarts_allowed: int) -> int:
    """Form the group with the other nodes, run the entry on every rank, form it anew when one is lost; the exit code."""
    refuse_cuda()
    # torch 2.13 reuses a cached bootstrap store in a new round; a node that joins late would wait for it in vain
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # all nodes have as many ranks, and need not tell each other: one that is gone again would be waited for
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # TERM and USR2 are the cluster agent's
    plain_torch_logging()
    poll_rendezvous_every(LOOK_SECONDS)
    if socket.gethostbyname(node.address).startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nodes of one machine; the host's own name may not resolve
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
    group, bugs, hangs = _Group(hung_steps=node.hung_steps), _Bugs(bugs_allowed), Hangs()
    handler = _NumberedRendezvous(signed_handler(parameters, node.run.attempt_dir(node.attempt)), group, node)
    spec = WorkerSpec(
        role="rank",
        local_world_size=node.ranks_per_node,
        entrypoint=run_rank,
        args=(str(node.run.path), node.attempt, (str(node.stop_flag), str(node.regroup_flag)), group, os.getpid()),
        rdzv_handler=handler,
        max_restarts=restarts_allowed,
        monitor_interval=MONITOR_SECONDS,
        local_addr=node.address,
    )
    while True:
        agent = _Agent(node, bugs, hangs, handler, spec)
        try:
            result = agent.run()
        except (RendezvousClosedError, RendezvousGracefulExitError):
            log.info("the group has finished without this node")
            return EXIT_DONE
        if result.is_failed():
            handler.shutdown()
            return agent.exit_code
        if EXIT_REQUEUE not in result.return_values.values():
            handler.shutdown()
            return EXIT_DONE
        if node.stop_flag.exists() or not node.elastic:
            handler.leave()
            return EXIT_REQUEUE
        log.info("all is saved; the group forms anew")  # a node joins, or one was asked to leave


def run_rank(run_path: str, attempt: int, flags: tuple[str, str], group: _Group, agent_pid: int) -> int:
    """One rank: its log, its parent, its fence, its entry. Returns 0 or 85; leaves with any other code at once."""
    exit_on_sigterm_from(agent_pid)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    run = RunDir(run_path)
    redirect_output(run.log_dir(attempt) / f"rank-{rank}.log")
    configure_logging(f"rank {rank}")
    plain_torch_logging()
    die_with_parent()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # the library read it where it was loaded: in an ancestor that had all cores
    context = JobContext(
        run=run,
        attempt=attempt,
        group=group.number,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        stop_flag=Path(flags[0]),
        regroup_flag=Path(flags[1]),
        heart_file=heart_file(Path(flags[0]), local_rank),
        hung_steps=group.hung_steps,
    )
    if group.hung_steps is not None:
        answer(agent_pid, stacks_file(Path(flags[0]), local_rank))
    try:
        if rank == 0:
            context.fence.claim()
    except StaleAttemptError as error:
        log.warning("%s", error)
        os._exit(EXIT_LOST_PEER)
    code = run_entry(context)
    logging.shutdown()
    if code not in (EXIT_DONE, EXIT_REQUEUE):
        os._exit(code)  # collectives may hang in a broken group's teardown
    return code
