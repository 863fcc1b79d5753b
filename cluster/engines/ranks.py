"""The ranks engine: torch.distributed.elastic in this process, with ranks forked from a server with preloaded modules."""

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

from ropewalk.cluster.engines.activity import RankProcess
from ropewalk.cluster.engines.crashes import CRASHES, crashes_in_a_row
from ropewalk.cluster.engines.entry import die_with_parent, run_entry, write_error
from ropewalk.cluster.engines.hang import Agreement, Formation, GroupWatch, Hangs
from ropewalk.cluster.engines.rendezvous import NumberedRendezvous, RankArguments, RanksNode, join_rendezvous
from ropewalk.cluster.engines.stacks import allow_stack_dumps, stacks_file
from ropewalk.cluster.engines.watch import Watch
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE, StaleAttemptError
from ropewalk.cluster.gpus import rank_gpu
from ropewalk.cluster.process.forking import forked_interpreters, refuse_cuda
from ropewalk.cluster.process.memory_limits import kills
from ropewalk.cluster.process.output import configure_logging, end_output, rank_prefix, redirect_output
from ropewalk.cluster.process.signals import exit_on_sigterm_from, stop_signals_blocked
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE, JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.mistakes import MISTAKE_REPEATED, repeats_mistake
from ropewalk.cluster.run.names import OUT_OF_MEMORY
from ropewalk.cluster.run.project import add_project_path

log = logging.getLogger(__name__)

MONITOR_SECONDS = 0.05
EXIT_BARRIER_SECONDS = 30.0


class _Agent(LocalElasticAgent):
    """torch's agent, extended to record lost ranks, to end hung groups, and not to retry permanent errors."""

    _watch: GroupWatch  # of the newest group

    def __init__(self, node: RanksNode, bugs: "_Bugs", hangs: Hangs, handler: NumberedRendezvous, spec: WorkerSpec) -> None:
        super().__init__(spec, DefaultLogsSpecs(), start_method="forkserver", shutdown_timeout=5)
        self._node, self._bugs, self._hangs, self._handler = node, bugs, hangs, handler
        self.exit_code = EXIT_FAILED
        self._kills = kills()

    def _initialize_workers(self, worker_group: WorkerGroup) -> None:
        super()._initialize_workers(worker_group)
        for process in self._pcontext._pc.processes:  # type: ignore[union-attr]
            process.terminate = process.kill  # torch calls it for the other ranks of the node; see `_shutdown`
        formed: Any = worker_group  # torch declares attributes as None that it fills in later
        run, flag, workers = self._node.run, self._node.stop_flag, formed.workers
        ranks = {
            worker.global_rank: RankProcess(
                pid=int(worker.id),
                heartbeat=heart_file(flag, worker.local_rank),
                dumps=stacks_file(flag, worker.local_rank),
                gpu=rank_gpu(worker.local_rank, len(workers)),
            )
            for worker in workers
        }
        self._node.processes.clear()
        self._node.processes.update(ranks)
        formation = Formation(run=run, attempt=self._node.attempt, node=self._node.index, group=self._handler.formation)
        watch = Watch(ranks, formation.group, workers[0].world_size)
        agreement = Agreement(formed.store, formed.group_world_size)
        self._watch = GroupWatch(formation, watch, agreement, self._hangs, lambda: _newest_step(run))

    def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 30) -> None:
        """Kill this node's ranks: a stopped or hung rank would not exit at a SIGTERM, and torch would wait for it."""
        super()._shutdown(signal.SIGKILL, timeout)

    def _exit_barrier(self) -> None:
        """Wait for the other nodes: one that joins the next group earlier would end their ranks, which may still save."""
        if not (self._watch.watch.is_spare and self._node.stop_flag.exists()):
            self._watch.wait_for_others(EXIT_BARRIER_SECONDS)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY and self._may_miss_nodes() and self._handler.peer_lost():
            log.warning("a node of the group is gone while other ranks wait for its ranks: forming a new group")
            return self._form_anew()
        if result.state == WorkerState.HEALTHY and self._watch.is_hung():
            log.warning("ranks hang: recording the stacks and forming a new group")
            self._watch.record()
            return self._form_anew()
        if self._watch.watch.is_spare:
            self._handler.mark_spare()
        if result.state == WorkerState.FAILED:
            self._record_lost({rank: failure.exitcode for rank, failure in result.failures.items()})
            if self.exit_code != EXIT_LOST_PEER:
                self._remaining_restarts = 0
        return result

    def _may_miss_nodes(self) -> bool:
        """Return True if a node can leave while others stay: in elastic groups, or if it was stopped before its ranks started."""
        return self._node.elastic or self._node.stop_flag.exists()

    def _form_anew(self) -> RunResult:
        """Kill this node's ranks; torch counts a restart and joins the next group."""
        self._shutdown()
        self.exit_code = EXIT_LOST_PEER
        return RunResult(state=WorkerState.FAILED)

    def _record_lost(self, codes: dict[int, int]) -> None:
        """Record the lost ranks with their exit codes, and set this agent's exit code accordingly."""
        node, group = self._node, self._handler.formation
        # torch kills the other ranks of the node, so only the first exit codes show the cause
        for rank, code in codes.items():
            node.run.event("rank_lost", rank=rank, node=node.index, exit_code=code, attempt=node.attempt, group=group)
        if -signal.SIGKILL in codes.values() and kills() > self._kills:
            node.run.event(OUT_OF_MEMORY, node=node.index, attempt=node.attempt, group=group)
        self._kills = kills()
        self.exit_code = self._judge(set(codes.values()))
        crashed = self.exit_code == EXIT_FAILED and EXIT_FAILED not in codes.values()
        for rank, code in codes.items():
            if crashed and code < 0:  # the rank could not record an error itself
                log_name = (node.shared_log if rank else "") or f"rank-{rank}.log"
                message = f"died of {signal.Signals(-code).name}, as in earlier groups; see its log, {log_name}"
                origin = {"who": f"rank {rank}", "rank": rank, "group": group}
                name = f"group-{group}-rank-{rank}-crash"
                write_error(node.run.attempt_dir(node.attempt), name, RuntimeError(message), EXIT_FAILED, **origin)

    def _judge(self, codes: set[int]) -> int:
        """Return EXIT_LOST_PEER if a new group is to be formed, else the exit code of the agent."""
        if EXIT_NEVER_RETRY in codes:
            return EXIT_NEVER_RETRY
        # a signal (kill, out of memory) or a lost peer is a disturbance, unless successive groups end in this way
        if EXIT_FAILED not in codes and not self._crashes_again(codes):
            return EXIT_LOST_PEER
        if self._bugs.allowed and repeats_mistake(self._node.run, self._node.attempt, self._handler.formation):
            self._node.run.event(MISTAKE_REPEATED, attempt=self._node.attempt)
            return EXIT_FAILED
        return EXIT_LOST_PEER if self._bugs.allow_another(_newest_step(self._node.run)) else EXIT_FAILED

    def _crashes_again(self, codes: set[int]) -> bool:
        """Return True if this group and those before it crashed without an external cause."""
        events = self._node.run.read_events(afresh=True)
        return not codes - CRASHES and crashes_in_a_row(events, self._node.attempt).is_bug(time.time())


@dataclass
class _Bugs:
    """Number of errors of the program since the last checkpoint."""

    allowed: int
    count: int = 0
    progress: int = -1  # step of the newest checkpoint at the last error

    def allow_another(self, progress: int) -> bool:
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress
        return self.count <= self.allowed


def _newest_step(run: RunDir) -> int:
    return max((int(e.get("step", 0)) for e in run.read_events(afresh=True) if e["event"] == "checkpoint"), default=0)


def start_forkserver(preload: list[str]) -> None:
    """Start the server from which ranks are forked with the `preload` modules imported. Does nothing if it is running.

    Import those modules first, and call this while the process has no threads. Raises ConfigError if CUDA is initialized.
    """
    refuse_cuda()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ropewalk.cluster.engines.ranks", *preload])
    with stop_signals_blocked():
        multiprocessing.resource_tracker.ensure_running()
    # again, since the resource tracker unblocks SIGTERM when it has started
    with stop_signals_blocked(), forked_interpreters():
        multiprocessing.forkserver.ensure_running()


def configure_torch(node: RanksNode) -> None:
    """Set the environment variables of torch's elastic agent and gloo, and route torch's log through our handler."""
    # torch 2.13 reuses a cached bootstrap store in a new round; a node that joins late would wait for it forever
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # all nodes have the same number of ranks, so they skip an exchange in which they would wait for a lost node
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # SIGTERM and SIGUSR2 are handled by our agent
    if socket.gethostbyname(node.address).startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # virtual nodes; the host's name may not resolve
    plain_torch_logging()


def plain_torch_logging() -> None:
    """Route torch's log through our handler.

    torch's formatter imports torch._dynamo (2 to 4 s) to format the first exception, that of a lost rank, which would delay
    the rank's replacement.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def run_ranks(node: RanksNode, bugs_allowed: int, restarts_allowed: int) -> int:
    """Form a group with the other nodes, run the entry on every rank, repeat after lost ranks, and return the exit code."""
    refuse_cuda()
    configure_torch(node)
    arguments = RankArguments(
        run=node.run.path,
        attempt=node.attempt,
        stop_flag=node.stop_flag,
        regroup_flag=node.regroup_flag,
        agent_pid=os.getpid(),
        hung_seconds=node.hung_seconds,
        shared_log=node.shared_log,
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
        log.info("ranks have saved; forming a new group")  # a node joins, or was asked to leave


def run_rank(arguments: RankArguments) -> int:
    """Run one rank: open its log, claim the fence, call the entry. Returns 0 or 85; exits with any other code."""
    exit_on_sigterm_from(arguments.agent_pid)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    os.environ[STORE_PREFIX_VARIABLE] = arguments.store_prefix
    run = RunDir(arguments.run)
    shared_log = arguments.shared_log if rank else ""
    redirect_output(run.log_dir(arguments.attempt) / (shared_log or f"rank-{rank}.log"), rank_prefix(rank) if shared_log else "")
    configure_logging(f"rank {rank}")
    plain_torch_logging()
    die_with_parent()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # it was read when the fork server imported torch; set it again
    context = JobContext(
        run=run,
        attempt=arguments.attempt,
        group=arguments.group,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        shared_log=shared_log,
        stop_flag=arguments.stop_flag,
        regroup_flag=arguments.regroup_flag,
        heart_file=heart_file(arguments.stop_flag, local_rank),
        hung_seconds=arguments.hung_seconds,
    )
    if arguments.hung_seconds is not None:
        allow_stack_dumps(arguments.agent_pid, stacks_file(arguments.stop_flag, local_rank))
    try:
        if rank == 0:
            context.fence.claim()
    except StaleAttemptError as error:
        log.warning("%s", error)
        os._exit(EXIT_LOST_PEER)
    add_project_path()
    code = run_entry(context)
    logging.shutdown()
    end_output()
    if code not in (EXIT_DONE, EXIT_REQUEUE):
        os._exit(code)  # the interpreter's shutdown may hang in a broken process group
    return code
