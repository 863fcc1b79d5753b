"""Heartbeats of ranks: the current phase and step, and how long a rank may stay in that phase."""

import logging
import math
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.phase_clock import Phase, PhaseClock, TimeClass

log = logging.getLogger(__name__)


FIRST_STEPS = 3  # of a group; not included in the mean step time
RECENT_STEPS = 64
# A rank that sleeps in a step or waits for data counts as hung after the longer of these two.
ASLEEP_STEPS, ASLEEP_SECONDS = 10.0, 15.0
JITTER_FACTOR = 2.0  # allow twice the longest recent step, and twice the longest wait for data
JITTER_DECAY = 0.999  # decay per step of the longest recent step: half of it is forgotten after 700 steps
PATIENCE_SECONDS = 1800.0  # for a phase without measurements
LONG_FACTOR = 10.0  # times the longest phase of its kind: for a rank that does not sleep, if that is more than `hung_seconds`

# number of the heartbeat | group, phase, step, seconds allowed asleep and at all | longest time of each phase so far
# | of rank 0: seconds of the run by class, until the phase began
_NUMBER, _STATE, _LONGEST = struct.Struct("<q"), struct.Struct("<qqqdd"), struct.Struct(f"<{len(Phase)}d")
_TOTALS = struct.Struct(f"<{len(TimeClass)}d")
_STATE_AT, _LONGEST_AT, _TOTALS_AT, _SIZE = 8, 64, 160, 320


def heart_file(stop_flag: Path, local_rank: int) -> Path:
    """Return the file of a rank's heartbeat, on the node's local disk. It is kept between groups for its measured times."""
    return stop_flag.with_name(f"heart-{local_rank}")


class Pace:
    """Time limits of phases, derived from measured times."""

    def __init__(self, hung_seconds: float, longest: list[float] | None = None) -> None:
        self.hung_seconds = hung_seconds
        self.patience_seconds = PATIENCE_SECONDS
        self.longest = longest or [0.0] * len(Phase)
        self._recent: deque[float] = deque()
        self._recent_sum = 0.0
        self._longest_recent = 0.0  # seconds of the longest recent step
        self._overhead = 0.0  # seconds of data and reports since the last step

    def add(self, phase: Phase, seconds: float) -> bool:
        """Add the time of a completed phase. Return True if it is the longest of its kind, so that `longest` has changed."""
        if phase is Phase.STEP:
            self._recent.append(seconds + self._overhead)
            self._recent_sum += self._recent[-1] - (self._recent.popleft() if len(self._recent) > RECENT_STEPS else 0.0)
            self._longest_recent = max(seconds, self._longest_recent * JITTER_DECAY)
        self._overhead = self._overhead + seconds if phase in (Phase.DATA, Phase.REPORT) else 0.0
        if phase is Phase.STEP or seconds <= self.longest[phase]:
            return False
        self.longest[phase] = seconds
        return True

    @property
    def step_seconds(self) -> float:
        """Mean time of the recent steps. Whatever their distribution, the median is at most twice the mean."""
        return self._recent_sum / len(self._recent) if self._recent else 0.0

    def asleep_seconds(self, phase: Phase) -> float:
        """Return the seconds after which a rank that sleeps counts as hung; infinite for phases that may sleep for long."""
        if phase not in (Phase.STEP, Phase.DATA) or not self._recent:
            return math.inf
        longest = max(self._longest_recent, self.longest[phase])
        return max(ASLEEP_SECONDS, ASLEEP_STEPS * self.step_seconds, JITTER_FACTOR * longest)

    def allowed_seconds(self, phase: Phase) -> float:
        """Return the seconds after which a rank counts as hung whatever it does."""
        if phase is Phase.LEAVING:
            return self.hung_seconds
        if phase is Phase.STEP and self._recent:
            return max(self.hung_seconds, LONG_FACTOR * self.step_seconds, JITTER_FACTOR * self._longest_recent)
        if not self.longest[phase]:
            return max(self.hung_seconds, self.patience_seconds)
        return max(self.hung_seconds, LONG_FACTOR * self.longest[phase])


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of a rank."""

    number: int
    group: int
    phase: Phase
    step: int
    asleep_seconds: float
    allowed_seconds: float


class Heart:
    """Writer of a rank's heartbeats. Without a file, or without calls of `beat`, hangs are not detected."""

    def __init__(
        self, path: Path | None, group: int = 0, hung_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._group, self._clock = group, clock
        self._number = self._steps = 0
        self._phase, self._since = Phase.NOTHING, 0.0
        self._map = _open(path) if path is not None and hung_seconds is not None else None
        self.left = time_sample(path) if self._map else {}  # by rank 0 of the group before
        self.phases = PhaseClock(clock)
        self.pace = Pace(hung_seconds or 0.0, list(_LONGEST.unpack_from(self._map, _LONGEST_AT)) if self._map else None)

    def begin(self, patience_seconds: float) -> None:
        """Start the phase LOADING. The limit of phases without measurements is at least `patience_seconds`."""
        self.pace.patience_seconds = max(PATIENCE_SECONDS, patience_seconds)
        self.beat(Phase.LOADING)

    def beat(self, phase: Phase, step: int = 0) -> None:
        """Record that the rank enters a phase at a step of the run."""
        self.phases.enter(phase)
        if self._map is None:
            return
        now = self._clock()
        # a spare rank has loaded nothing: the time is no measure for later groups
        if self._number and phase is not Phase.SPARE and self.pace.add(self._phase, now - self._since):
            _LONGEST.pack_into(self._map, _LONGEST_AT, *self.pace.longest)
        if phase is Phase.STEP and self._steps < FIRST_STEPS:
            self._steps += 1
            phase = Phase.FIRST_STEP
        self._number += 1
        self._phase, self._since = phase, now
        # in this order: an agent that reads in between applies the old limits to the new phase, which has just begun
        _NUMBER.pack_into(self._map, 0, self._number)
        # until it counts, no totals: those of the group before do not belong to this phase
        totals = self.phases.seconds.values() if self.phases.counts_run else [0.0] * len(TimeClass)
        _TOTALS.pack_into(self._map, _TOTALS_AT, *totals)
        limits = self.pace.asleep_seconds(phase), self.pace.allowed_seconds(phase)
        _STATE.pack_into(self._map, _STATE_AT, self._group, phase, step, *limits)


def _open(path: Path) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                os.pwrite(descriptor, bytes(_SIZE), 0)  # allocate it: writing to a hole of a mapped file on a full disk is fatal
            return mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("%s: cannot be written, so hangs of this rank are not detected: %s", path, error)
        return None


def read_beat(path: Path) -> Beat | None:
    """Read a rank's last heartbeat; None if there was none."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(raw) < _SIZE:
        return None
    (number,) = _NUMBER.unpack_from(raw)
    group, phase, step, asleep, allowed = _STATE.unpack_from(raw, _STATE_AT)
    return Beat(number, group, Phase(phase), step, asleep, allowed) if number else None


def read_totals(path: Path) -> dict[str, float] | None:
    """Return the seconds of the run by class, until the last heartbeat; None if the rank does not count them."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    totals = _TOTALS.unpack_from(raw, _TOTALS_AT) if len(raw) >= _SIZE else ()
    return (
        {name.value: round(seconds, 6) for name, seconds in zip(TimeClass, totals, strict=True) if seconds}
        if any(totals)
        else None
    )


def time_sample(heart: Path | None) -> dict[str, Any]:
    """Return the run's seconds by class until the last heartbeat, and the class since then, if rank 0 is on this node."""
    totals, beat = (read_totals(heart), read_beat(heart)) if heart is not None else (None, None)
    return {"run_seconds": totals, "run_class": beat.phase.time_class.value} if totals and beat else {}
