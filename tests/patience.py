"""The table of waiting times, and the way to wait: for a condition, by a clock that slows down with the machine.

A number at the spot holds on the machine of whoever wrote it. Here a test says what it waits for, the table says how long that
may take on two quiet cores, and a second only counts in full while no more programs want to run than there are cores.
"""

import os
import resource
import subprocess
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.02, 0.1  # between looks: a twentieth of the time waited so far, within these bounds
LOOK_SHARE, MOST_LOOK_SECONDS = 0.05, 0.5  # looks that are expensive take this share of a core, if that is seldom enough
SLOWEST = 10.0  # a machine that is slower than this by its load is no place for tests
LOAD = Path("/proc/loadavg")
PRESSURE = Path("/proc/pressure/cpu")
HANG_SECONDS = 600.0  # for calls that take a number: whoever is not back by then hangs, on any machine


class Patience(Enum):
    """Seconds on two quiet cores; each is some ten times what it takes there."""

    SIGNAL = 15.0  # one process notices what another, which runs, has done; a process dies
    START = 40.0  # an interpreter starts and imports torch, or Ray does
    STEP = 90.0  # a run starts and reaches a step, or comes back after a disturbance
    RUN = 150.0  # a run, an attempt, a small sweep ends
    CLUSTER = 240.0  # a cluster with its intervals, or a sweep, takes part


def slowness() -> float:
    """Number of programs that want to run, for each core; at least 1."""
    try:
        running = int(LOAD.read_text().split()[3].partition("/")[0]) - 1.0  # whoever looks is one of them
    except (OSError, ValueError, IndexError):  # not Linux
        running = os.getloadavg()[0]
    return min(max(1.0, running / (os.cpu_count() or 1)), SLOWEST)


class MachineClock:
    """Seconds as a quiet machine would count them. Whoever waits looks at it often: it learns the load by looking."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def look(self) -> float:
        """The seconds since the clock was made, each divided by how slow the machine was."""
        now = time.monotonic()
        self.seconds += (now - self._last) / slowness()
        self._last = now
        return self.seconds


class Stopwatch:
    """Seconds in which no program had to wait for a core: what must be quick is measured by it, on a busy machine too."""

    def __init__(self) -> None:
        self._began, self._waited = time.monotonic(), _waited_seconds()

    @property
    def seconds(self) -> float:
        """Since the watch was made."""
        elapsed, waited = time.monotonic() - self._began, _waited_seconds()
        if waited is None or self._waited is None:
            return elapsed / slowness()
        return max(0.0, elapsed - (waited - self._waited))


def _waited_seconds() -> float | None:
    """In how many seconds since the machine started some program waited for a core; None where that is not counted."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def ended(process: subprocess.Popen[Any], patience: Patience = Patience.START) -> int:
    """The exit code of a process, which is waited for."""
    until(lambda: process.poll() is not None, patience, lambda: f"{process.args} runs")
    return int(process.returncode)


def until(
    condition: Callable[[], Any],
    patience: Patience = Patience.RUN,
    describe: Callable[[], object] = lambda: "",
    *,
    look_seconds: float | None = None,
) -> Any:
    """Wait for a condition; whatever true value it has. Raises AssertionError with what `said` tells.

    `look_seconds`: between two looks, for a condition that must be seen at once. Others that are expensive to look at, such as
    the table of all processes, are looked at less often.
    """
    clock, before = MachineClock(), _cpu_seconds()
    while not (result := condition()):
        waited, cost = clock.look(), _cpu_seconds() - before
        assert waited < patience.value, f"did not happen within {patience}: {describe() or condition}"
        pause = max(min(max(LOOK_SECONDS, waited / 20), LONGEST_LOOK_SECONDS), min(cost / LOOK_SHARE, MOST_LOOK_SECONDS))
        time.sleep(look_seconds or pause)
        before = _cpu_seconds()
    return result


def _cpu_seconds() -> float:
    """Return the time that this process and its children that have ended have computed."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
