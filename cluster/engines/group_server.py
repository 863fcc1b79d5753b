"""The process that forms an attempt's groups of ranks, next to the supervisor.

If an agent did so, the whole run would end when that agent's node dies. It listens only at the run's address, and exits with its
parent. Its loop never waits for a disk: events and verdicts are the work of another thread.

Usage: python -m ropewalk.cluster.engines.group_server RUN_DIR --attempt N --nodes A..B --expected N --host HOST --term N
"""

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.config import NodeRange
from ropewalk.cluster.engines.crashes import CRASHES, crashes_in_a_row, newest_checkpoint
from ropewalk.cluster.engines.entry import write_error
from ropewalk.cluster.errors import EXIT_FAILED
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.membership.decisions import Decision, Failed, RecordEvent, Reserve, Tell
from ropewalk.cluster.membership.groups import Groups
from ropewalk.cluster.membership.server import Event, Server
from ropewalk.cluster.process.output import configure_logging, rank_log
from ropewalk.cluster.process.ports import listen_on
from ropewalk.cluster.process.signals import STOP_SIGNALS
from ropewalk.cluster.process.sockets import raise_open_files
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_servers import announce_group_server, group_server_address, reserve_group
from ropewalk.cluster.run.mistakes import MISTAKE_REPEATED, repeats_mistake
from ropewalk.cluster.run.names import GROUP_KEY

log = logging.getLogger(__name__)

OPEN_FILES = 1 << 16  # connections of agents
RETRY_SECONDS = 1.0  # before a number is reserved again after an error of the disk


@dataclass
class Judge:
    """Decides about groups that have failed: a disturbance, or a bug that has spent its budget."""

    run: RunDir
    attempt: int
    bugs: int = 0  # errors of the program since the last checkpoint
    progress: int = -1  # step of the newest checkpoint at the last error

    def verdict(self, group: int, codes: Mapping[int, int]) -> int | None:
        """Return the exit code of the agents, or None if a new group is to be formed. `codes`: of the ranks that failed."""
        values = set(codes.values())
        # a signal (kill, out of memory) or a lost peer is a disturbance, unless successive groups end in this way
        crashed = EXIT_FAILED not in values
        if crashed and (values - CRASHES or not self._crashes_again()):
            return None
        allowed = self.run.retries.bugs
        if allowed and repeats_mistake(self.run, self.attempt, group):
            self.run.event(MISTAKE_REPEATED, attempt=self.attempt)
        elif self._count_bug() <= allowed:
            return None
        if crashed:
            self._record_crashes(group, codes)
        return EXIT_FAILED

    def _crashes_again(self) -> bool:
        """Return True if this group and those before it crashed without an external cause."""
        return crashes_in_a_row(self.run.read_events(afresh=True), self.attempt).is_bug(time.time())

    def _count_bug(self) -> int:
        progress = newest_checkpoint(self.run)
        self.bugs = self.bugs + 1 if progress <= self.progress else 1
        self.progress = progress
        return self.bugs

    def _record_crashes(self, group: int, codes: Mapping[int, int]) -> None:
        """Record the error of ranks that could not do so themselves."""
        nodes, ranks = self.run.resources(self.attempt).nodes.most, self.run.resources(self.attempt).local_world_size
        for rank, code in codes.items():
            if code < 0:
                log_name = rank_log(rank, rank // ranks, nodes * ranks)
                message = f"died of {signal.Signals(-code).name}, as in earlier groups; see its log, {log_name}"
                origin = {"who": f"rank {rank}", "rank": rank, "group": group}
                name = f"group-{group}-rank-{rank}-crash"
                write_error(self.run.attempt_dir(self.attempt), name, RuntimeError(message), EXIT_FAILED, **origin)


class GroupServer:
    """The agents of an attempt and its groups of ranks."""

    def __init__(self, run: RunDir, attempt: int, nodes: NodeRange, *, expected: int, address: tuple[str, int]) -> None:
        self._address = address
        self._run, self._attempt, self._judge = run, attempt, Judge(run, attempt)
        ranks, restarts = run.resources(attempt).local_world_size, run.retries.disturbances
        self._groups = Groups(attempt, nodes.least, nodes.most, ranks, expected, restarts_allowed=restarts)
        key = read_afresh(run.attempt_dir(attempt) / GROUP_KEY).decode()
        assert key, "the attempt's key is empty"
        self.server = Server(key, lambda hello, caller: hello["name"], self._handle)
        self._disk = ThreadPoolExecutor(1, "disk")
        self._parent = os.getppid()
        self._judging: asyncio.Task[None] | None = None
        self._reserving: asyncio.Task[None] | None = None

    def _handle(self, event: Event | None) -> None:
        if os.getppid() != self._parent:
            os._exit(0)
        now = self.server.clock()
        self._perform(self._groups.tick(now) if event is None else self._groups.handle(event, now))

    def _perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Tell():
                    self.server.send(decision.member, decision.message)
                case RecordEvent():
                    log.info("%s: %s", decision.kind, decision.fields)
                    self._disk.submit(self._run.event, decision.kind, **decision.fields, attempt=self._attempt)
                case Reserve():
                    self._reserving = asyncio.get_running_loop().create_task(self._reserve(decision.number))
                case Failed():
                    self._judging = asyncio.get_running_loop().create_task(self._decide_about(decision))

    async def _reserve(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                reserved = await loop.run_in_executor(self._disk, self._take_number, number)
            except OSError as error:
                log.warning("no number above %d can be reserved for a group yet: %s", number, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return self._perform(self._groups.reserved(reserved, self.server.clock()))

    def _take_number(self, after: int) -> int:
        """Return a number above `after` that no other server has; ends this process if another one has taken over."""
        folder = self._run.attempt_dir(self._attempt)
        if (newest := group_server_address(folder)) != self._address:
            log.error("the group server at %s has taken over", newest)
            os._exit(0)
        return reserve_group(folder, after)

    async def _decide_about(self, failed: Failed) -> None:
        loop = asyncio.get_running_loop()
        try:
            code = await loop.run_in_executor(self._disk, self._judge.verdict, failed.group, failed.codes)
        except OSError as error:
            log.warning("group %d cannot be judged, so another one forms: %s", failed.group, error)
            code = None
        self._perform(self._groups.judge(code, self.server.clock()))


def main() -> None:
    """Serve until the parent process is gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--nodes", required=True, help="number of nodes of a group: N or A..B")
    parser.add_argument("--expected", type=int, required=True, help="number of nodes that will be ready soon")
    parser.add_argument("--host", required=True)
    parser.add_argument("--term", type=int, default=1, help="above that of each server that this one takes over from")
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the agents need this process until they have exited
    configure_logging("group server")
    raise_open_files(OPEN_FILES)
    run, nodes = RunDir(arguments.run_dir), NodeRange.model_validate(NodeRange.parse(arguments.nodes))
    listener = listen_on(arguments.host, 0)
    address = arguments.host, int(listener.getsockname()[1])
    announce_group_server(run.attempt_dir(arguments.attempt), arguments.term, *address)
    asyncio.run(GroupServer(run, arguments.attempt, nodes, expected=arguments.expected, address=address).server.serve(listener))


if __name__ == "__main__":
    main()
