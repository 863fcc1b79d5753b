"""Answers of an agent to requests to look into a live run."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.engines.activity import RankProcess
from ropewalk.cluster.engines.stacks import Stack, take_stack
from ropewalk.cluster.process.kill import family, variable_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.heartbeat import read_beat
from ropewalk.cluster.run.inspections import InspectionRequest, rank_request_file, read_requests

log = logging.getLogger(__name__)

LEAST_POLL_SECONDS = 0.5
STALE_SECONDS = 120.0
SPY_SECONDS = 5.0  # for one stack, on a busy machine
RESOURCE_TRACKER = "multiprocessing.resource_tracker"  # in its command line


class Inspector:
    """Thread that takes the stacks of this node's processes on request, and passes other requests on to rank 0 if it is here.

    `ranks`: the processes of the present group on this node, kept by the engine. `spared`: processes that are not looked at.
    """

    def __init__(self, run: RunDir, attempt: int, node: int, stop_flag: Path, spared: Callable[[], set[int]]) -> None:
        self.ranks: dict[int, RankProcess] = {}
        self._run, self._attempt, self._node, self._stop_flag, self._spared = run, attempt, node, stop_flag, spared
        self._answered = 0

    def start(self, agent: int) -> None:
        """Start the thread. `agent`: the process whose descendants are this node's processes."""
        threading.Thread(target=self._follow, args=(agent,), name="inspector", daemon=True).start()

    def _follow(self, agent: int) -> None:
        pause_seconds = max(LEAST_POLL_SECONDS, poll_seconds(self._run.path))
        while True:
            try:
                for request in read_requests(self._run, self._attempt):
                    if request.number > self._answered:
                        self._answered = request.number
                        if time.time() - request.time < STALE_SECONDS:  # older ones were for an agent before this one
                            self._answer(request, agent)
            except (OSError, ValueError, KeyError, TypeError, psutil.Error) as error:
                log.warning("a request to look into the run could not be answered: %s", error)
            time.sleep(pause_seconds)

    def _answer(self, request: InspectionRequest, agent: int) -> None:
        if request.kind == "stacks":
            answer = {"node": self._node, "time": time.time(), "processes": self.processes(agent)}
            request.folder(self._run).mkdir(parents=True, exist_ok=True)
            write_json(request.folder(self._run) / f"node-{self._node}.json", answer, durable=False)
        elif 0 in self.ranks:
            write_json(rank_request_file(self._stop_flag), asdict(request), durable=False)

    def processes(self, agent: int) -> list[dict[str, Any]]:
        """Return the ranks of this node and their descendants, each with its stack, as plain values."""
        by_pid = {process.pid: rank for rank, process in dict(self.ranks).items()}
        spared = self._spared() | {agent}
        members = [process for process in family(agent) if process.pid not in spared]
        with ThreadPoolExecutor(max(1, len(members))) as pool:  # they differ less if they are read at the same time
            return list(filter(None, pool.map(lambda process: self._look(process, by_pid), members)))

    def _look(self, process: psutil.Process, by_pid: Mapping[int, int]) -> dict[str, Any] | None:
        """Return a process as plain values; None if it has ended, or is neither a rank nor a program in Python."""
        rank = by_pid.get(process.pid)
        rank_process = self.ranks.get(rank) if rank is not None else None
        try:
            if rank_process is None and _is_helper(process, by_pid):
                return None
            stack = take_stack(process.pid, rank_process.dumps if rank_process else None, SPY_SECONDS)
            if rank_process is None and not stack.readable and "python" not in process.exe():
                return None
            named = variable_of(process, "RANK") if rank is None else None
            beat = read_beat(rank_process.heartbeat) if rank_process else None
            return {
                "rank": int(named) if named and named.isdigit() else rank,
                "is_rank": rank_process is not None,
                "pid": process.pid,
                "command": " ".join(process.cmdline()[:4])[:120],
                "phase": beat.phase.label if beat else None,
                "step": beat.step if beat else None,
                **_plain(stack),
            }
        except (OSError, psutil.Error):  # it has just ended
            return None


def _is_helper(process: psutil.Process, by_pid: Mapping[int, int]) -> bool:
    """Return True for the server from which ranks are forked, its spare processes, and the tracker of its resources."""
    servers = [each for each in (process, process.parent()) if each and any(child.pid in by_pid for child in each.children())]
    return bool(servers) or any(RESOURCE_TRACKER in argument for argument in process.cmdline())


def _plain(stack: Stack) -> dict[str, Any]:
    threads = [
        {
            "name": thread.name,
            "main": thread.main,
            "frames": [[frame.function, frame.file, frame.line] for frame in thread.frames],
        }
        for thread in stack.threads
    ]
    return {"state": stack.state, "threads": threads, "text": stack.text}
