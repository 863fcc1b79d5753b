"""Sidecars, relays and training as processes that a test kills: forked from one that has imported wandb."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.results.metrics import MetricLog
from tests.fork_server import SERVER
from tests.patience import HANG_SECONDS

CHECKPOINT_STEPS, VALIDATION_STEPS = 5, 10
PAUSE_SECONDS = 0.03


class Started:
    """A process that was started, with this one's environment."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        variables = {key: value for key, value in os.environ.items() if key.startswith(("WANDB_", "ROPEWALK_", "HOME"))}
        self.process: Any = SERVER.Process(target=_run, args=(work, variables, arguments))
        self.process.start()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def hang_up(self) -> int:
        """SIGHUP, as the agent at the end of an attempt; returns the exit code."""
        os.kill(self.process.pid, signal.SIGHUP)
        self.process.join(HANG_SECONDS)
        return int(self.process.exitcode)


def _run(work: Callable[..., None], environment: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    work(*arguments)


def relay(root: Path) -> None:
    """`ropewalk sync --follow` with shorter intervals."""
    from ropewalk.jobs.runs.mirror import relay

    relay.POLL_SECONDS, relay.SLOW_SECONDS, relay.AWAY_SECONDS = 0.1, 0.3, 0.3
    relay.Relay([root], lambda arguments: None).follow(lambda: False)


def sidecar(path: Path, attempt: int) -> None:
    """Run a sidecar as the agent starts it."""
    from ropewalk.jobs.runs.mirror.following import Sidecar

    Sidecar(RunDir(path), attempt).follow()


def train(path: Path, attempt: int, last: int | None) -> None:
    """Metrics of a loop that goes on from its last checkpoint, and does again what was done since. None: until it is killed."""
    run = RunDir(path)
    metrics = MetricLog(JobContext(run=run, attempt=attempt))
    done = (read_json(run.path / "toy.json") or {"step": 0})["step"]
    for step in itertools.count(done + 1):
        metrics.log(step, {"train/loss": 1 / step, "train/position": 8 * step})
        if step % VALIDATION_STEPS == 0:
            metrics.log(step, {"validation/loss": 2 / step})
        if step % CHECKPOINT_STEPS == 0:
            metrics.sync()
            write_json(run.path / "toy.json", {"step": step})
        if step == last:
            return
        time.sleep(PAUSE_SECONDS)  # it computes
