"""The processes of a node's ranks: forked from a server with preloaded modules, watched, reused and killed."""

import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from ropewalk.cluster.engines.activity import RankProcess, stop_marker
from ropewalk.cluster.engines.rank import RankArguments, log_of, start_rank
from ropewalk.cluster.engines.stacks import stacks_file
from ropewalk.cluster.gpus import rank_gpu
from ropewalk.cluster.membership.node_agent import Start
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.forking import forked_interpreters, refuse_cuda
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE
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

    def __init__(self, ranks_per_node: int, secrets: RunSecrets) -> None:
        self._count, self._secrets = ranks_per_node, secrets
        self.hand_over = False  # the next group needs the memory of this node
        self._working: dict[int, _Process] = {}  # by rank
        self._waiting: dict[int, _Process] = {}  # by local rank: those that have left their group
        self._spare: list[_Process] = []
        # time to fork spare processes, when a group does not form just now; with secrets to mask they could not be used
        self._spare_at = math.inf if secrets.values else 0.0

    def start(self, start: Start, arguments: RankArguments, store_prefix: str) -> dict[int, RankProcess]:
        """Give the ranks of a group a process each, and return them by rank."""
        assert not self._working
        self.hand_over = False
        ranks: dict[int, RankProcess] = {}
        for local_rank in range(self._count):
            rank = start.node_rank * self._count + local_rank
            variables = {**self._secrets.environment, **self._variables(start, local_rank), STORE_PREFIX_VARIABLE: store_prefix}
            process = self._take(rank, arguments)
            process.send(Assignment(group=start.group, variables=variables))
            self._working[rank] = process
            ranks[rank] = RankProcess(
                pid=int(process.process.pid or 0),
                heartbeat=heart_file(arguments.stop_flag, local_rank),
                dumps=stacks_file(arguments.stop_flag, local_rank),
                gpu=rank_gpu(local_rank, self._count),
            )
        return ranks

    def _take(self, rank: int, arguments: RankArguments) -> _Process:
        """Return a process that waits for a place, or a new one.

        It opens its log itself, unless secrets have to be masked in it: such a process does not stay, and has no spare one.
        """
        local_rank = rank % self._count
        if local_rank in self._waiting:
            return self._waiting.pop(local_rank)
        if self._spare:
            return self._spare.pop()
        if not self._secrets.values:
            return _fork(arguments)
        path, is_shared = log_of(arguments, rank)
        with (
            child_output(path, self._secrets, whole_lines=is_shared) as descriptor,
            Connection(os.dup(descriptor), readable=False) as output,  # a form in which it reaches the fork server
        ):
            return _fork(arguments, output)

    def prepare(self, arguments: RankArguments, now: float) -> None:
        """Fork the spare processes, if it is time."""
        if now >= self._spare_at:
            self._spare_at = math.inf
            self._spare += [_fork(arguments) for _ in range(self._count - len(self._spare))]

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
        return [handle for each in self._all() for handle in (each.process.sentinel, each.line)]

    def _all(self) -> list[_Process]:
        return [*self._working.values(), *self._waiting.values(), *self._spare]

    def reap(self, now: float) -> dict[int, int]:
        """Return the ranks that ended or left their group since the last call, with their exit codes.

        A negative code is the signal that ended it. That of a rank that left is EXIT_LOST_PEER, or EXIT_REQUEUE if it saved.
        """
        codes: dict[int, int] = {}
        for rank, each in list(self._working.items()):
            for message in each.received():
                if isinstance(message, Trains):
                    each.stays, self._spare_at = message.stays, min(self._spare_at, now + SPARE_SECONDS)
                elif isinstance(message, HandsOver):
                    self.hand_over = True
                else:
                    codes[rank] = message.code
                    self._waiting[rank % self._count] = self._working.pop(rank)
        for rank, each in list(self._working.items()):
            if (code := each.process.exitcode) is not None:
                codes[rank] = code
                self._working.pop(rank).close()
        for local_rank, each in list(self._waiting.items()):
            if each.process.exitcode is not None:
                self._waiting.pop(local_rank).close()
        dead = [each for each in self._spare if each.process.exitcode is not None]
        self._spare = [each for each in self._spare if each not in dead]
        for each in dead:
            each.close()
        return codes

    def release(self, group: int) -> set[int]:
        """Have the ranks leave a group, and kill those that cannot; returns the others.

        A stopped one cannot. When it is dead, its peers' collectives fail, and they can.
        """
        killed = {
            rank: each
            for rank, each in self._working.items()
            if not each.stays or stop_marker(int(each.process.pid or 0)) is not None
        }
        self._working = {rank: each for rank, each in self._working.items() if rank not in killed}
        for each in self._working.values():
            each.send(Over(group))
        _kill(killed.values())
        return set(self._working)

    def kill(self) -> None:
        """Kill all ranks; a stopped or hung rank would not exit at a SIGTERM."""
        _kill(self._working.values())
        self._working = {}

    def close(self) -> None:
        """Kill all processes."""
        _kill(self._all())
        self._working, self._waiting, self._spare = {}, {}, []


def _fork(arguments: RankArguments, output: Connection | None = None) -> _Process:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=start_rank, args=(arguments, theirs, output))
    process.start()
    theirs.close()
    return _Process(process, ours)


def _kill(processes: Iterable[_Process]) -> None:
    processes = list(processes)
    for each in processes:
        each.process.kill()
    for each in processes:
        each.process.join(KILL_SECONDS)
        with suppress(ValueError):  # it is not gone yet
            each.close()
