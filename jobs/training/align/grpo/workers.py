"""The rollout workers of a node: started by its first rank, replaced when they die, and gone with it."""

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

MOST_DEATHS = 5  # of a worker, without a chunk that was drawn meanwhile


class RolloutWorkers:
    """Some processes that draw rollouts; numbers `first` and following of `of` in all."""

    def __init__(self, context: JobContext, orders: Path, first: int, count: int, of: int) -> None:
        self._context, self._orders, self._of = context, orders, of
        self._deaths = 0
        self._processes = {number: self._start(number) for number in range(first, first + count)}

    def check(self) -> None:
        """Replace workers that died. Raises ConfigError where one cannot be of use, RuntimeError where it dies for ever."""
        for number, process in self._processes.items():
            code = process.poll()
            if code is None:
                continue
            said = read_json(error_file(self._orders, number))
            if said:
                raise ConfigError(said)
            self._deaths += 1
            if self._deaths > MOST_DEATHS:
                raise RuntimeError(f"rollout worker {number} ends again and again, with {code}; see the rank's log")
            log.warning("rollout worker %d ended with %d: starting another", number, code)
            self._context.run.event("rollout_worker_lost", worker=number, exit_code=code)
            self._processes[number] = self._start(number)

    def well(self) -> None:
        """Something was drawn: what died before is no sign of anything."""
        self._deaths = 0

    def close(self) -> None:
        """End the workers."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        context = self._context
        words = module_command(
            "ropewalk.jobs.training.align.grpo.worker", str(context.run.path), "--attempt", str(context.attempt)
        )
        words += ["--group", str(context.group), "--number", str(number), "--of", str(self._of), "--parent", str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
