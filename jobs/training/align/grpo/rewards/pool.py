"""Rewards computed in processes beside a rank: each call has a time limit, and a process that hangs or dies is replaced.

Processes and not Ray's actors: Ray would start half a dozen processes of its own on every node in every attempt, some seconds
and some hundred MiB, to do what a pipe does here; and its actors cannot be killed at a time limit without losing what others
of them wait for.
"""

import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, Self

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RUNS_VARIABLE
from ropewalk.jobs.training.align.grpo.rewards.process import NOTHING, OK
from ropewalk.jobs.training.align.grpo_config import RewardConfig

log = logging.getLogger(__name__)

DEATHS = 3  # of the process at the same answer: then it is the reward that kills it
START_SECONDS = 300.0  # a reward's module may import much
_CHUNK_BYTES = 1 << 16


class Place(NamedTuple):
    """Where rewards look for what they are named by."""

    modules: str  # a folder from which modules are imported, too
    runs: str  # the root below which runs lie


class Score(NamedTuple):
    """What one reward says of one answer; without a value the outcome says why."""

    value: float | None
    outcome: str

    @property
    def failed(self) -> bool:
        """Whether the reward raised, was no number, hung or died; one that has nothing to say did not fail."""
        return self.outcome not in {OK, NOTHING}


class _DiedError(Exception):
    """The process of a reward is gone."""


class _Process:
    """One process, with its pipe. It belongs to the thread that made it, and dies with it."""

    def __init__(self, rewards: Sequence[RewardConfig], place: Place) -> None:
        path = os.pathsep.join([place.modules, *filter(None, sys.path)])
        self._popen = subprocess.Popen(
            module_command("ropewalk.jobs.training.align.grpo.rewards.process", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", RUNS_VARIABLE: place.runs},
            start_new_session=True,  # what a reward starts is killed with it
        )
        self._rest = b""
        try:
            said = self.ask([{"name": one.name, "options": one.options} for one in rewards], START_SECONDS)
        except (_DiedError, TimeoutError) as error:
            self.kill()
            raise _DiedError(f"as it started: {error}") from None
        if "error" in said:
            self.kill()
            raise ConfigError(said["error"])

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        """The reply to a request. Raises TimeoutError, or _DiedError; the process is of no use then."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self._popen.stdin.flush()
        except OSError:
            raise _DiedError(self._end()) from None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._popen.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"after {seconds:g} s")
            data = os.read(self._popen.stdout.fileno(), _CHUNK_BYTES)
            if not data:
                raise _DiedError(self._end())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _end(self) -> str:
        code = self._popen.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, 9)
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            with suppress(OSError):
                stream and stream.close()


class RewardPool:
    """Scores answers in some processes. Use it as a context manager; it starts at the first answer."""

    def __init__(self, rewards: Sequence[RewardConfig], processes: int, place: Place) -> None:
        self._rewards, self._size, self._place = rewards, processes, place
        self._work: queue.SimpleQueue[tuple[str, Mapping[str, Any], Future[list[Score]]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

        self._closing = False
        self._error: BaseException | None = None  # that says of every answer that it cannot be scored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        for _thread in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def submit(self, answer: str, record: Mapping[str, Any]) -> "Future[list[Score]]":
        """Begin to score an answer: a score of each reward. The future raises ConfigError for rewards that cannot be made."""
        while len(self._threads) < self._size:
            self._threads.append(threading.Thread(target=self._run, name="rewards", daemon=True))
            self._threads[-1].start()
        future: Future[list[Score]] = Future()
        self._work.put((answer, record, future))
        return future

    def _run(self) -> None:
        caller = _Caller(self._rewards, self._place)
        while (item := self._work.get()) is not None:
            answer, record, future = item
            if self._closing or self._error is not None:  # nobody waits for it, or no reward can be made
                future.set_exception(self._error or ConfigError("rewards: this run is leaving"))
                continue
            try:
                future.set_result([caller.score(number, answer, record) for number in range(len(self._rewards))])
            except BaseException as error:  # raised where the scores are waited for
                self._error = error
                future.set_exception(error)
        caller.close()


class _Caller:
    """Calls rewards in a process, which it replaces when it must."""

    def __init__(self, rewards: Sequence[RewardConfig], place: Place) -> None:
        self._rewards, self._place = rewards, place
        self._process: _Process | None = None

    def score(self, number: int, answer: str, record: Mapping[str, Any]) -> Score:
        """What reward `number` says of an answer. A process that dies is replaced and asked again: it may have been killed."""
        reward, request = self._rewards[number], {"reward": number, "answer": answer, "record": record}
        for _ in range(DEATHS):
            try:
                self._process = self._process or _Process(self._rewards, self._place)
                said = self._process.ask(request, reward.seconds)
                return Score(said["value"], said["outcome"])
            except TimeoutError:
                self.close()
                return Score(None, f"timeout after {reward.seconds:g} s")
            except _DiedError as error:
                self.close()
                death = str(error)
        return Score(None, f"its process died: {death}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None
