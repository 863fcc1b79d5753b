"""The heartbeat of a rank: what its agent learns of the phase and step that the rank is in, and how long that may take."""

import logging
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

log = logging.getLogger(__name__)


class Phase(IntEnum):
    """What a rank is doing."""

    NOTHING = 0  # no heartbeat yet
    LOADING = 1
    FIRST_STEP = 2  # of a group: compilers, allocators and connections begin
    STEP = 3
    DATA = 4  # it waits for its next batch
    REPORT = 5  # it waits until metrics and events can be handed to their writer, or writes them
    VALIDATION = 6
    CHECKPOINT = 7
    LEAVING = 8
    ROLLOUT = 9  # it makes the samples of its next batch, or waits until others have

    @property
    def label(self) -> str:
        """The phase's name for people."""
        return self.name.lower().replace("_", " ")


FIRST_STEPS = 3  # of a group, that are no measure of the others
RECENT_STEPS = 64
# Beyond the multiple of the recent step time. Three seconds are what a group may take until it is formed anew: two of them are
# for the agents' agreement, the stacks, the end of the ranks, and the forming.
STEP_MARGIN_SECONDS = 1.0
JITTER_FACTOR = 2.0  # times the longest step of late: who was once as late as that may be so again
JITTER_DECAY = 0.999  # a step: after 700 steps half of it is forgotten
PATIENCE_SECONDS = 1800.0  # of a phase that was never measured
# Of a phase that was measured, the least; else the multiple of the longest.
LEAST_SECONDS = {Phase.DATA: 10.0}
LONG_SECONDS = 60.0

# number of the beat | group, phase, step, what the phase may take | the longest of each phase so far
_NUMBER, _WORD, _LONGEST = struct.Struct("<q"), struct.Struct("<qqqd"), struct.Struct(f"<{len(Phase)}d")
_WORD_AT, _LONGEST_AT, _SIZE = 8, 64, 256


def heart_file(stop_flag: Path, local_rank: int) -> Path:
    """Return the file of a rank's heartbeat, on the node's own disk. It outlives a group: the measured times are in it."""
    return stop_flag.with_name(f"heart-{local_rank}")


class Pace:
    """How long each phase may take, by how long it took before."""

    def __init__(self, factor: float, longest: list[float] | None = None) -> None:
        self.factor = factor
        self.patience_seconds = PATIENCE_SECONDS
        self.longest = longest or [0.0] * len(Phase)
        self._recent: deque[float] = deque()
        self._recent_sum = 0.0
        self._latest = 0.0  # the longest step of late
        self._beside = 0.0  # what data and reports of the step under way took

    def took(self, phase: Phase, seconds: float) -> bool:
        """Learn from a phase that is over; returns whether it was the longest of its kind, and `longest` has changed."""
        if phase is Phase.STEP:
            self._recent.append(seconds + self._beside)
            self._recent_sum += self._recent[-1] - (self._recent.popleft() if len(self._recent) > RECENT_STEPS else 0.0)
            self._latest = max(seconds, self._latest * JITTER_DECAY)
        self._beside = self._beside + seconds if phase in (Phase.DATA, Phase.REPORT) else 0.0
        if phase is Phase.STEP or seconds <= self.longest[phase]:
            return False
        self.longest[phase] = seconds
        return True

    @property
    def step_seconds(self) -> float:
        """The mean of the recent steps. However they are spread, their median is at most twice that."""
        return self._recent_sum / len(self._recent) if self._recent else 0.0

    def allowed(self, phase: Phase) -> float:
        """Return the seconds after which a phase counts as hung."""
        if phase is Phase.LEAVING:
            return LONG_SECONDS
        if phase is Phase.STEP and self._recent:
            return max(self.factor * self.step_seconds + STEP_MARGIN_SECONDS, JITTER_FACTOR * self._latest)
        if not self.longest[phase]:
            return self.patience_seconds
        return max(LEAST_SECONDS.get(phase, LONG_SECONDS), self.factor * self.longest[phase])


@dataclass(frozen=True)
class Beat:
    """A rank's last heartbeat, as its agent reads it."""

    number: int
    group: int
    phase: Phase
    step: int
    allowed_seconds: float


class Heart:
    """The rank's side of its heartbeat. Without a file, or in a job that never beats, hangs are not detected."""

    def __init__(
        self, path: Path | None, group: int = 0, factor: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._group, self._clock = group, clock
        self._number = self._steps = 0
        self._phase, self._since = Phase.NOTHING, 0.0
        self._map = _open(path) if path is not None and factor is not None else None
        self.pace = Pace(factor or 0.0, list(_LONGEST.unpack_from(self._map, _LONGEST_AT)) if self._map else None)

    def begin(self, patience_seconds: float) -> None:
        """Begin with loading. A phase that was never measured may take `patience_seconds`, and PATIENCE_SECONDS at least."""
        self.pace.patience_seconds = max(PATIENCE_SECONDS, patience_seconds)
        self.beat(Phase.LOADING)

    def beat(self, phase: Phase, step: int = 0) -> None:
        """Tell the agent that the rank is in this phase, of this step of the run, from now on."""
        if self._map is None:
            return
        now = self._clock()
        if self._number and self.pace.took(self._phase, now - self._since):
            _LONGEST.pack_into(self._map, _LONGEST_AT, *self.pace.longest)
        if phase is Phase.STEP and self._steps < FIRST_STEPS:
            self._steps += 1
            phase = Phase.FIRST_STEP
        self._number += 1
        self._phase, self._since = phase, now
        # in this order: an agent that reads in between takes the old allowance for the new phase, which has only begun
        _NUMBER.pack_into(self._map, 0, self._number)
        _WORD.pack_into(self._map, _WORD_AT, self._group, phase, step, self.pace.allowed(phase))


def _open(path: Path) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                os.pwrite(descriptor, bytes(_SIZE), 0)  # a hole would be filled at a beat, and kill where the disk is full
            return mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("%s: cannot be written, so hangs of this rank will not be detected: %s", path, error)
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
    group, phase, step, allowed = _WORD.unpack_from(raw, _WORD_AT)
    return Beat(number, group, Phase(phase), step, allowed) if number else None
