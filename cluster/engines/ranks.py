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
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousGracefulExitError

from ropewalk.cluster.engines.crashes import CRASHES, crashes_in_a_row
from ropewalk.cluster.engines.entry import die_with_parent, run_entry, write_error
from ropewalk.cluster.engines.hang import Agreement, Formation, GroupWatch, Hangs
from ropewalk.cluster.engines.rendezvous import NumberedRendezvous, RankArguments, RanksNode, join_rendezvous
from ropewalk.cluster.engines.stacks import answer, stacks_file
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE, StaleAttemptError
from ropewalk.cluster.process.forking import forked_interpreters, refuse_cuda
from ropewalk.cluster.process.output import configure_logging, redirect_output
from ropewalk.cluster.process.signals import exit_on_sigterm_from, stop_signals_blocked
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.project import add_project_path

log = logging.getLogger(__name__)

MONITOR_SECONDS = 0.05
EXIT_BARRIER_SECONDS = 30.0


class _Agent(LocalElasticAgent):
    """torch's agent that also records which rank died, ends hung groups, and does not retry what a retry cannot mend."""

    _watch: GroupWatch  # of the group that was formed last

    def __init__(self, node: RanksNode, bugs: "_Bugs", hangs: Hangs, handler: NumberedRendezvous, spec: WorkerSpec) -> None:
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
        """End this node's ranks by SIGKILL: one that is stopped or stuck would not leave at a SIGTERM, and be waited for."""
        super()._shutdown(signal.SIGKILL, timeout)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY and self._may_miss_nodes() and self._handler.peer_lost():
            log.warning("a node of the group has gone while its ranks were waited for: forming a new group")
            return self._form_anew()
        if result.state == WorkerState.HEALTHY and self._watch.hung():
            log.warning("all ranks of the group hang: recording their stacks and forming a new group")
            workers, flag = worker_group.workers, self._node.stop_flag
            pids = {worker.global_rank: int(worker.id) for worker in workers}
            self._watch.record(pids, {worker.global_rank: stacks_file(flag, worker.local_rank) for worker in workers})
            return self._form_anew()
        if result.state == WorkerState.FAILED:
            self._tell_lost({rank: failure.exitcode for rank, failure in result.failures.items()})
            if self.exit_code != EXIT_LOST_PEER:
                self._remaining_restarts = 0
        return result

    def _may_miss_nodes(self) -> bool:
        """Whether a node can leave and the others stay: in an elastic group, and where a stop found its ranks not started yet."""
        return self._node.elastic or self._node.stop_flag.exists()

    def _form_anew(self) -> RunResult:
        """End this node's ranks; torch counts it as a disturbance and looks for the other nodes."""
        self._shutdown()
        self.exit_code = EXIT_LOST_PEER
        return RunResult(state=WorkerState.FAILED)

    def _tell_lost(self, codes: dict[int, int]) -> None:
        """Record the ranks that were lost, by their exit codes, and judge what follows from it."""
        node, group = self._node, self._handler.formation
        # torch ends the other ranks of the node itself: only the first to go tells a cause
        for rank, code in codes.items():
            node.run.event("rank_lost", rank=rank, node=node.index, exit_code=code, attempt=node.attempt, group=group)
        self.exit_code = self._judge(set(codes.values()))
        crashed = self.exit_code == EXIT_FAILED and EXIT_FAILED not in codes.values()
        for rank, code in codes.items():
            if crashed and code < 0:  # nothing else says why
                error = RuntimeError(f"died of {signal.Signals(-code).name}, as the groups before: see its log, rank-{rank}.log")
                who = {"who": f"rank {rank}", "rank": rank, "group": group}
                write_error(node.run.attempt_dir(node.attempt), f"group-{group}-rank-{rank}-crash", error, EXIT_FAILED, **who)

    def _judge(self, codes: set[int]) -> int:
        """Return EXIT_LOST_PEER if a new group is to form, else the code that the agent exits with."""
        if EXIT_NEVER_RETRY in codes:
            return EXIT_NEVER_RETRY
        # a signal (kill, out of memory) or a dead peer: disturbances, not bugs, unless group after group ends so
        if EXIT_FAILED not in codes and not self._crashes_again(codes):
            return EXIT_LOST_PEER
        return EXIT_LOST_PEER if self._bugs.allow_another(_newest_step(self._node.run)) else EXIT_FAILED

    def _crashes_again(self, codes: set[int]) -> bool:
        """Whether the group has crashed, like those before it, and nothing from outside explains that."""
        events = self._node.run.read_events(afresh=True)
        return not codes - CRASHES and crashes_in_a_row(events, self._node.attempt).is_bug(time.time())


@dataclass
class _Bugs:
    """Counts errors of the program since the last checkpoint."""

    allowed: int
    count: int = 0
    progress: int = -1

    def allow_another(self, progress: int) -> bool:
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress
        return self.count <= self.allowed


def _newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint: an error after it does not count with those before it."""
    return max((int(e.get("step", 0)) for e in run.read_events(afresh=True) if e["event"] == "checkpoint"), default=0)


def start_forkserver(preload: list[str]) -> None:
    """Fork the server that ranks are forked from, so that they start with `preload` imported.

    Call it after those modules are imported here, and while this process has no threads. Does nothing if the server runs.
    Raises ConfigError if CUDA is initialized.
    """
    refuse_cuda()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ropewalk.cluster.engines.ranks", *preload])
    with stop_signals_blocked():
        multiprocessing.resource_tracker.ensure_running()
    # once more: it lifts the block of SIGTERM when it has started
    with stop_signals_blocked(), forked_interpreters():
        multiprocessing.forkserver.ensure_running()


def configure_torch(node: RanksNode) -> None:
    """Set what torch's elastic agent and gloo take from the environment, and make torch log through our handler."""
    # torch 2.13 reuses a cached bootstrap store in a new round; a node that joins late would wait for it in vain
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # all nodes have as many ranks, and need not tell each other: one that is gone again would be waited for
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # TERM and USR2 are the cluster agent's
    if socket.gethostbyname(node.address).startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nodes of one machine; the host's own name may not resolve
    plain_torch_logging()


def plain_torch_logging() -> None:
    """Make torch log through our handler.

    Its own formatter imports torch._dynamo, 2 to 4 s, for the first exception that it formats: that of a lost rank, whose
    replacement would wait for it.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def run_ranks(node: RanksNode, bugs_allowed: int, restarts_allowed: int) -> int:
    """Form a group with the other nodes and run the entry on every rank, again after each lost rank; returns the exit code."""
    refuse_cuda()
    configure_torch(node)
    arguments = RankArguments(
        run=node.run.path,
        attempt=node.attempt,
        stop_flag=node.stop_flag,
        regroup_flag=node.regroup_flag,
        agent_pid=os.getpid(),
        hung_steps=node.hung_steps,
    )
    bugs, hangs, handler = _Bugs(bugs_allowed), Hangs(), join_rendezvous(node, arguments)
    spec = WorkerSpec(
        role="rank",
        local_world_size=node.ranks_per_node,
        entrypoint=run_rank,
        args=(arguments,),
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
        log.info("ranks have saved; forming a new group")  # a node joins, or one was asked to leave


def run_rank(arguments: RankArguments) -> int:
    """Be one rank: open its log, follow its agent, claim the fence, call the entry. Returns 0 or 85; any other code exits."""
    exit_on_sigterm_from(arguments.agent_pid)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    run = RunDir(arguments.run)
    redirect_output(run.log_dir(arguments.attempt) / f"rank-{rank}.log")
    configure_logging(f"rank {rank}")
    plain_torch_logging()
    die_with_parent()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # the library read it where it was loaded: in an ancestor that had all cores
    context = JobContext(
        run=run,
        attempt=arguments.attempt,
        group=arguments.group,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        stop_flag=arguments.stop_flag,
        regroup_flag=arguments.regroup_flag,
        heart_file=heart_file(arguments.stop_flag, local_rank),
        hung_steps=arguments.hung_steps,
    )
    if arguments.hung_steps is not None:
        answer(arguments.agent_pid, stacks_file(arguments.stop_flag, local_rank))
    try:
        if rank == 0:
            context.fence.claim()
    except StaleAttemptError as error:
        log.warning("%s", error)
        os._exit(EXIT_LOST_PEER)
    add_project_path()
    code = run_entry(context)
    logging.shutdown()
    if code not in (EXIT_DONE, EXIT_REQUEUE):
        os._exit(code)  # collectives may hang in a broken group's teardown
    return code
