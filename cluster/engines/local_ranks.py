"""The processes of a node's ranks: forked from a server with preloaded modules, watched, and killed."""

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from ropewalk.cluster.engines.activity import RankProcess
from ropewalk.cluster.engines.rank import RankArguments, log_of, start_rank
from ropewalk.cluster.engines.stacks import stacks_file
from ropewalk.cluster.gpus import rank_gpu
from ropewalk.cluster.membership.node_agent import Start
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.forking import forked_interpreters, refuse_cuda
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.context import STORE_PREFIX_VARIABLE
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.secrets.variables import RunSecrets

KILL_SECONDS = 5.0  # for a killed process to be gone


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


class LocalRanks:
    """The ranks of a node's newest group."""

    def __init__(self, ranks_per_node: int, secrets: RunSecrets) -> None:
        self._count, self._secrets = ranks_per_node, secrets
        self._processes: dict[int, ForkServerProcess] = {}  # by rank

    def start(self, start: Start, arguments: RankArguments, store_prefix: str) -> dict[int, RankProcess]:
        """Start the ranks of a group, and return them by rank."""
        assert not self._processes
        ranks: dict[int, RankProcess] = {}
        for local_rank in range(self._count):
            rank = start.node_rank * self._count + local_rank
            variables = {**self._secrets.environment, **self._variables(start, local_rank), STORE_PREFIX_VARIABLE: store_prefix}
            process = self._start(arguments, variables, rank)
            self._processes[rank] = process
            ranks[rank] = RankProcess(
                pid=int(process.pid or 0),
                heartbeat=heart_file(arguments.stop_flag, local_rank),
                dumps=stacks_file(arguments.stop_flag, local_rank),
                gpu=rank_gpu(local_rank, self._count),
            )
        return ranks

    def _start(self, arguments: RankArguments, variables: Mapping[str, str], rank: int) -> ForkServerProcess:
        """Start a rank, which opens its log itself unless secrets have to be masked in it."""
        make = multiprocessing.get_context("forkserver").Process
        if not self._secrets.values:
            process = make(target=start_rank, args=(arguments, variables))
            process.start()
            return process
        path, is_shared = log_of(arguments, rank)
        with (
            child_output(path, self._secrets, whole_lines=is_shared) as descriptor,
            Connection(os.dup(descriptor), readable=False) as output,  # a form in which it reaches the fork server
        ):
            process = make(target=start_rank, args=(arguments, variables, output))
            process.start()
        return process

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
    def sentinels(self) -> list[int]:
        """Descriptors that become readable when a rank ends."""
        return [process.sentinel for process in self._processes.values()]

    def reap(self) -> dict[int, int]:
        """Return the exit codes of the ranks that have ended since the last call; negative: the signal that ended it."""
        codes = {rank: code for rank, process in self._processes.items() if (code := process.exitcode) is not None}
        for rank in codes:
            self._processes.pop(rank).close()
        return codes

    def kill(self) -> None:
        """Kill all ranks; a stopped or hung rank would not exit at a SIGTERM."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join(KILL_SECONDS)
        self._processes = {}
