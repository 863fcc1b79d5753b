"""The rollout workers of a node: started by its first rank, replaced when they die, and stopped with it."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.training.align.grpo.worker import error_file

log = logging.getLogger(__name__)

MAX_DEATHS = 5  # of workers since the last generated chunk


class RolloutWorkers:
    """Processes that generate rollouts: numbers `first` and following of `of` in all."""

    def __init__(self, context: JobContext, orders: Path, first: int, count: int, of: int) -> None:
        self._context, self._requests, self._of = context, orders, of
        self._deaths = 0
        self._processes = {number: self._start(number) for number in range(first, first + count)}

    def check(self) -> None:
        """Replace workers that died. Raises ConfigError for an invalid configuration, RuntimeError if one keeps dying."""
        for number, process in self._processes.items():
            code = process.poll()
            if code is None:
                continue
            error = read_json(error_file(self._requests, number))
            if error:
                raise ConfigError(error)
            self._deaths += 1
            if self._deaths > MAX_DEATHS:
                raise RuntimeError(f"rollout worker {number} keeps failing, with exit code {code}; see the rank's log")
            log.warning("rollout worker %d ended with exit code %d: starting another", number, code)
            self._context.run.event("rollout_worker_lost", worker=number, exit_code=code)
            self._processes[number] = self._start(number)

    def reset_deaths(self) -> None:
        self._deaths = 0

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        context = self._context
        command = module_command(
            "ropewalk.jobs.training.align.grpo.worker", str(context.run.path), "--attempt", str(context.attempt)
        )
        command += ["--group", str(context.group), "--number", str(number), "--of", str(self._of), "--parent", str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
