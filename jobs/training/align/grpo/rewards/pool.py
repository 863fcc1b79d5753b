"""Rewards computed in processes beside a rank: each call has a time limit, and a process that hangs or dies is replaced.

Not Ray actors: Ray would start several processes on every node in every attempt, which takes seconds and hundreds of MiB, for
what a pipe does here; and its actors cannot be killed at a time limit without losing other pending calls.
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

DEATHS = 3  # of the process at the same answer: then the reward itself kills it
START_SECONDS = 300.0  # importing a reward's module may take long
_CHUNK_BYTES = 1 << 16


class RewardEnvironment(NamedTuple):
    """The paths that rewards need."""

    modules: str  # folder added to the import path
    runs: str  # root of the runs


class Score(NamedTuple):
    """The result of a reward for an answer; without a value the outcome has the reason."""

    value: float | None
    outcome: str

    @property
    def failed(self) -> bool:
        """True if the reward raised, returned no number, hung or died. None is no failure."""
        return self.outcome not in {OK, NOTHING}


class _DiedError(Exception):
    """The process of a reward died."""


class _Process:
    """A reward process with its pipe, owned by one thread."""

    def __init__(self, rewards: Sequence[RewardConfig], environment: RewardEnvironment) -> None:
        path = os.pathsep.join([environment.modules, *filter(None, sys.path)])
        self._popen = subprocess.Popen(
            module_command("ropewalk.jobs.training.align.grpo.rewards.process", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", RUNS_VARIABLE: environment.runs},
            start_new_session=True,  # processes started by a reward are killed with it
        )
        self._rest = b""
        try:
            reply = self.ask([{"name": reward.name, "options": reward.options} for reward in rewards], START_SECONDS)
        except (_DiedError, TimeoutError) as error:
            self.kill()
            raise _DiedError(f"at its start: {error}") from None
        if "error" in reply:
            self.kill()
            raise ConfigError(reply["error"])

    def ask(self, request: Any, seconds: float) -> dict[str, Any]:
        """Return the reply to a request. Raises TimeoutError or _DiedError, after which the process must be killed."""
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
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, 9)
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            with suppress(OSError):
                stream and stream.close()


class RewardPool:
    """Processes that score answers; a context manager. They start at the first answer."""

    def __init__(self, rewards: Sequence[RewardConfig], processes: int, environment: RewardEnvironment) -> None:
        self._rewards, self._size, self._environment = rewards, processes, environment
        self._work: queue.SimpleQueue[tuple[str, Mapping[str, Any], Future[list[Score]]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._error: BaseException | None = None  # fails all further answers

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
        """Start to score an answer with each reward. The future raises ConfigError for rewards that cannot be created."""
        while len(self._threads) < self._size:
            self._threads.append(threading.Thread(target=self._run, name="rewards", daemon=True))
            self._threads[-1].start()
        future: Future[list[Score]] = Future()
        self._work.put((answer, record, future))
        return future

    def _run(self) -> None:
        caller = _Caller(self._rewards, self._environment)
        while (item := self._work.get()) is not None:
            answer, record, future = item
            if self._closing or self._error is not None:  # closing, or rewards cannot be created
                future.set_exception(self._error or ConfigError("rewards: this run is stopping"))
                continue
            try:
                future.set_result([caller.score(number, answer, record) for number in range(len(self._rewards))])
            except BaseException as error:  # raised again where the score is awaited
                self._error = error
                future.set_exception(error)
        caller.close()


class _Caller:
    """Calls rewards in a process, and replaces it when necessary."""

    def __init__(self, rewards: Sequence[RewardConfig], environment: RewardEnvironment) -> None:
        self._rewards, self._environment = rewards, environment
        self._process: _Process | None = None

    def score(self, number: int, answer: str, record: Mapping[str, Any]) -> Score:
        """Compute reward `number` of an answer. A process that dies is replaced and asked again: it may have been killed."""
        reward, request = self._rewards[number], {"reward": number, "answer": answer, "record": record}
        for _ in range(DEATHS):
            try:
                self._process = self._process or _Process(self._rewards, self._environment)
                reply = self._process.ask(request, reward.seconds)
                return Score(reply["value"], reply["outcome"])
            except TimeoutError:
                self.close()
                return Score(None, f"timeout after {reward.seconds:g} s")
            except _DiedError as error:
                self.close()
                death = str(error)
        return Score(None, f"its process died: {death}")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None
