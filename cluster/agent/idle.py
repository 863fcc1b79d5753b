"""Watch over the GPUs of a run: a warning while all of them are idle, and its end if the user has set a limit."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ropewalk.cluster.gpus import IDLE_PERCENT, gpu_percents
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import SAMPLES_TAIL_BYTES, parse_lines, read_tail
from ropewalk.cluster.run.heartbeat import read_beat
from ropewalk.cluster.run.names import NODES
from ropewalk.cluster.run.phase_clock import Phase

log = logging.getLogger(__name__)

WARNING_MINUTES = 10.0  # until the warning; half of the limit if that is less
FRESH_SECONDS = 180.0  # of samples, which are a minute apart after a day
# phases in which a rank may leave its GPU alone: it loads, compiles, validates, saves or ends
WORK_ELSEWHERE = frozenset({Phase.LOADING, Phase.FIRST_STEP, Phase.VALIDATION, Phase.CHECKPOINT, Phase.LEAVING})


class IdleWatch:
    """Reads the samples of all nodes on the first node, after each of its own."""

    def __init__(
        self, run: RunDir, attempt: int, limit_minutes: float | None, heart: Path, clock: Callable[[], float] = time.time
    ) -> None:
        """`limit_minutes`: after which the run is cancelled; None: never. `heart`: file of rank 0's heartbeats."""
        self._run, self._attempt, self._limit, self._heart, self._clock = run, attempt, limit_minutes, heart, clock
        self._since: float | None = None  # when all GPUs were first seen idle
        self._warned = self._ended = False

    def look(self) -> None:
        """Warn, or request the end of the run, if that is due."""
        now = self._clock()
        if self._works_elsewhere() or not self._all_idle(now):
            self._since, self._warned = None, False
            return
        self._since = self._since if self._since is not None else now
        minutes = (now - self._since) / 60
        if not self._warned and minutes >= min(WARNING_MINUTES, (self._limit or 2 * WARNING_MINUTES) / 2):
            self._warned = True
            self._run.event("gpus_idle", attempt=self._attempt, minutes=round(minutes, 1), limit=self._limit)
        if self._limit is not None and minutes >= self._limit and not self._ended:
            self._ended = True
            log.warning("all GPUs were idle for %.0f minutes: the run is stopped (resources.idle_minutes)", minutes)
            self._run.event("idle_stop", attempt=self._attempt, minutes=round(minutes, 1))
            self._run.request_cancel()

    def _works_elsewhere(self) -> bool:
        beat = read_beat(self._heart)
        return beat is not None and beat.phase in WORK_ELSEWHERE

    def _all_idle(self, now: float) -> bool:
        """Return True if NVML tells the use of GPUs, and none is used on any node."""
        files = (self._run.attempt_dir(self._attempt) / NODES).glob("node-*.jsonl")
        newest = [lines[-1] for path in files if (lines := parse_lines(read_tail(path, SAMPLES_TAIL_BYTES))[0])]
        fresh = [each for each in newest if now - float(each.get("time", 0.0)) < FRESH_SECONDS]
        percents = [percent for each in fresh for percent in gpu_percents(each)]
        return bool(percents) and all(percent < IDLE_PERCENT for percent in percents)
