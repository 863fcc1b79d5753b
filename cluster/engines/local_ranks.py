"""The processes of a node's ranks: forked from a server with preloaded modules, watched, reused and killed."""

import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from ropewalk.cluster.engines.activity import RankProcess, stop_marker
from ropewalk.cluster.engines.rank import log_of, start_rank
from ropewalk.cluster.engines.stacks import stacks_file
from ropewalk.cluster.gpus import rank_gpu
from ropewalk.cluster.membership.node_agent import Start
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.forking import forked_interpreters, refuse_cuda
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE, JobContext
from ropewalk.cluster.run.group_line import Assignment, HandsOver, Left, Over, Trains
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.secrets.variables import RunSecrets

KILL_SECONDS = 5.0  # for a killed process to be gone
SPARE_SECONDS = 1.0  # after a rank says that it trains, before spare processes are forked: the group forms at that time


def start_forkserver(preload: list[str]) -> None:
    """Start the server from which ranks are forked with the `preload` modules imported. Does nothing if it is running.

    Import those modules first, and call this while the process has no threads. Raises ConfigError if CUDA is initialized.
    """
    refuse_cuda()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ropewalk.cluster.engines.rank", *preload])
    with stop_signals_blocked():
        multiprocessing.resource_tracker.ensure_running()
    # again, since the resource tracker unblocks SIGTERM when it has started
    with stop_signals_blocked(), forked_interpreters():
        multiprocessing.forkserver.ensure_running()


@dataclass(eq=False)
class _Process:
    """A process for ranks of this node, one after the other."""

    process: ForkServerProcess
    line: Connection
    stays: bool = False  # it leaves a group that has ended without exiting

    def send(self, message: Assignment | Over) -> None:
        with suppress(OSError):  # it is dead, which its sentinel shows
            self.line.send(message)

    def received(self) -> list[Trains | HandsOver | Left]:
        messages: list[Trains | HandsOver | Left] = []
        with suppress(EOFError, OSError):
            while self.line.poll():
                messages.append(self.line.recv())
        return messages

    def close(self) -> None:
        self.line.close()
        self.process.close()


class LocalRanks:
    """The ranks of a node's newest group, and processes that wait for a place in the next one.

    A process that has left its group keeps its local rank. Spare processes are forked ahead for those that will have died.
    """

    def __init__(self, ranks_per_node: int, secrets: RunSecrets, context: JobContext) -> None:
        self._count, self._secrets, self._context = ranks_per_node, secrets, context
        self.hand_over = False  # the next group needs the memory of this node
        self._working: dict[int, _Process] = {}  # by rank
        self._waiting: dict[int, _Process] = {}  # by local rank: those that have left their group
        self._spare: dict[int, _Process] = {}  # numbered
        # time to fork spare processes, when a group does not form just now; with secrets to mask they could not be used
        self._spare_at = math.inf if secrets.values else 0.0
        self._rehearsal = ""  # of spare processes

    def start(self, start: Start, store_prefix: str) -> dict[int, RankProcess]:
        """Give the ranks of a group a process each, and return them by rank."""
        assert not self._working
        assert self._context.stop_flag is not None
        self.hand_over = False
        ranks: dict[int, RankProcess] = {}
        for local_rank in range(self._count):
            rank = start.node_rank * self._count + local_rank
            variables = {**self._secrets.environment, **self._variables(start, local_rank), STORE_PREFIX_VARIABLE: store_prefix}
            process = self._take(rank)
            process.send(Assignment(group=start.group, variables=variables))
            self._working[rank] = process
            ranks[rank] = RankProcess(
                pid=int(process.process.pid or 0),
                heartbeat=heart_file(self._context.stop_flag, local_rank),
                dumps=stacks_file(self._context.stop_flag, local_rank),
                gpu=rank_gpu(local_rank, self._count),
            )
        return ranks

    def _take(self, rank: int) -> _Process:
        """Return a process that waits for a place, or a new one.

        It opens its log itself, unless secrets have to be masked in it: such a process does not stay, and has no spare one.
        """
        local_rank = rank % self._count
        if local_rank in self._waiting:
            return self._waiting.pop(local_rank)
        if self._spare:
            return self._spare.popitem()[1]
        if not self._secrets.values:
            return self._fork()
        path, is_shared = log_of(self._context, rank)
        with (
            child_output(path, self._secrets, whole_lines=is_shared) as descriptor,
            Connection(os.dup(descriptor), readable=False) as output,  # a form in which it reaches the fork server
        ):
            return self._fork(output)

    def _fork(self, output: Connection | None = None, rehearsal: str = "") -> _Process:
        ours, theirs = multiprocessing.Pipe()
        arguments = (self._context, os.getpid(), theirs, output, rehearsal)
        process = multiprocessing.get_context("forkserver").Process(target=start_rank, args=arguments)
        process.start()
        theirs.close()
        return _Process(process, ours)

    def prepare(self, now: float) -> None:
        """Fork the spare processes, if it is time."""
        if now >= self._spare_at:
            self._spare_at = math.inf
            self._spare = {each: self._spare.get(each) or self._fork(rehearsal=self._rehearsal) for each in range(self._count)}

    def _variables(self, start: Start, local_rank: int) -> dict[str, str]:
        """Return the variables that torchrun gives to a rank."""
        count = self._count
        values: dict[str, Any] = {
            "LOCAL_RANK": local_rank,
            "RANK": start.node_rank * count + local_rank,
            "GROUP_RANK": start.node_rank,
            "LOCAL_WORLD_SIZE": count,
            "WORLD_SIZE": start.nodes * count,
            "GROUP_WORLD_SIZE": start.nodes,
            "MASTER_ADDR": start.address,
            "MASTER_PORT": start.port,
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }
        if count > 1:
            values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        return {name: str(value) for name, value in values.items()}

    @property
    def handles(self) -> list[Any]:
        """Objects that become readable when a process ends or sends something."""
        processes = (each for some in (self._working, self._waiting, self._spare) for each in some.values())
        return [handle for each in processes for handle in (each.process.sentinel, each.line)]

    def reap(self, now: float) -> dict[int, int]:
        """Return the ranks that ended or left their group since the last call, with their exit codes.

        A negative code is the signal that ended it. That of a rank that left is EXIT_LOST_PEER, or EXIT_REQUEUE if it saved.
        """
        codes: dict[int, int] = {}
        for rank, each in list(self._working.items()):
            for message in each.received():
                if isinstance(message, Trains):
                    each.stays, self._rehearsal = message.stays, message.rehearsal
                    self._spare_at = min(self._spare_at, now + SPARE_SECONDS)
                elif isinstance(message, HandsOver):
                    self.hand_over = True
                else:
                    codes[rank] = message.code
                    self._waiting[rank % self._count] = self._working.pop(rank)
        for processes in (self._working, self._waiting, self._spare):
            for rank, each in list(processes.items()):
                if (code := each.process.exitcode) is not None:
                    processes.pop(rank).close()
                    if processes is self._working:
                        codes[rank] = code
        return codes

    def release(self, group: int) -> set[int]:
        """Have the ranks leave a group, and kill those that cannot; returns the others.

        A stopped one cannot. When it is dead, its peers' collectives fail, and they can.
        """
        killed: dict[int, _Process] = {}
        for rank, each in list(self._working.items()):
            if each.stays and stop_marker(int(each.process.pid or 0)) is None:
                each.send(Over(group))
            else:
                killed[rank] = self._working.pop(rank)
        _kill(killed)
        return set(self._working)

    def kill(self) -> None:
        """Kill all ranks; a stopped or hung rank would not exit at a SIGTERM."""
        _kill(self._working)

    def close(self) -> None:
        """Kill all processes."""
        for processes in (self._working, self._waiting, self._spare):
            _kill(processes)


def _kill(processes: dict[int, _Process]) -> None:
    """Kill processes, and forget them."""
    for each in processes.values():
        each.process.kill()
    for each in processes.values():
        each.process.join(KILL_SECONDS)
        with suppress(ValueError):  # it is not gone yet
            each.close()
    processes.clear()
