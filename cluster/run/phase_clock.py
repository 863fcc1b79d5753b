"""Seconds of a run by class, as the process of rank 0 counts them: those before it, and its own by phase."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum


class TimeClass(StrEnum):
    """Class of a second of a run. Every second from the submission on has exactly one."""

    QUEUED = "queued"
    STARTING = "starting"  # of agents and processes, until rank 0 begins to load
    LOADING = "loading"
    TRAINING = "training"  # steps that count: no later one has overwritten them
    VALIDATING = "validating"
    SAVING = "saving"  # only while the steps wait for it
    DATA = "waiting_for_data"
    RECOVERING = "recovering"  # from a disturbance until the next step
    REDONE = "redone"  # steps that were overwritten later
    SLOW = "slow_or_hung"
    RUNNING = "running"  # a program of the user's, or a job without steps
    STOPPED = "stopped"  # at the end of an attempt, and until a user resumes the run
    SPARE = "spare"  # only of nodes: beside a group that has no place for them


class Phase(IntEnum):
    """Phase of a rank's work."""

    NOTHING = 0  # no heartbeat yet
    LOADING = 1
    FIRST_STEP = 2  # the first steps of a group, slowed down by compilation, memory allocation and connections
    STEP = 3
    DATA = 4  # waits for the next batch
    REPORT = 5  # writes metrics and events, or waits for their background writer
    VALIDATION = 6
    CHECKPOINT = 7
    LEAVING = 8
    ROLLOUT = 9  # generates samples for the next batch, or waits for other ranks that do
    SPARE = 10  # has no work in this group

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")

    @property
    def time_class(self) -> TimeClass:
        return _CLASSES.get(self, TimeClass.TRAINING)


_CLASSES = {
    Phase.NOTHING: TimeClass.STARTING,
    Phase.LOADING: TimeClass.LOADING,
    Phase.DATA: TimeClass.DATA,
    Phase.VALIDATION: TimeClass.VALIDATING,
    Phase.CHECKPOINT: TimeClass.SAVING,
    Phase.LEAVING: TimeClass.STOPPED,
}
_STEPS = (Phase.FIRST_STEP, Phase.STEP)

SKIPPED_STEPS = 3  # of a process: compilation and connections make them long
RECENT_STEPS = 64
LEAST_STEPS = 5  # before the mean is meaningful
# a step that exceeds the mean of recent ones by both was slow: what it took beyond the mean is not training
SLOW_FACTOR, SLOW_SECONDS = 3.0, 1.0


class PhaseClock:
    """Clock of one process. `seconds` are those of the run by class once `begin` was called, before that its own ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(TimeClass, 0.0)
        self.phase, self._since = Phase.NOTHING, clock()
        self.started = self._since  # time of the first phase
        self._recovering = False  # until the next step
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._steps, self._step = 0, 0.0  # `_step`: seconds of this step so far, without what was slow
        self.counts_run = False

    def begin(self, earlier: Mapping[TimeClass, float], *, recovering: bool) -> None:
        """Add the seconds of the run before this process. `recovering`: its loading belongs to a disturbance."""
        if recovering:
            self._seconds[TimeClass.RECOVERING] += self._seconds[TimeClass.LOADING]
            self._seconds[TimeClass.LOADING] = 0.0
        for name, seconds in earlier.items():
            self._seconds[name] += seconds
        self._recovering, self.counts_run = recovering, True

    def enter(self, phase: Phase) -> None:
        """Count the time of the phase that ends now."""
        now = self._clock()
        if self.phase is Phase.NOTHING:
            self.started = now
        elif self.phase in _STEPS:
            self._count_step(now - self._since)
        else:
            self._seconds[self.name] += now - self._since
        if phase is Phase.DATA and self._step:
            self._end_step()
        if phase in _STEPS:
            self._recovering = False
        elif phase is Phase.LOADING and (self._steps or self._step):  # a rollback
            self._recovering = True
        self.phase, self._since = phase, now

    @property
    def name(self) -> TimeClass:
        """Class of the current phase."""
        return TimeClass.RECOVERING if self._recovering else self.phase.time_class

    def _count_step(self, seconds: float) -> None:
        """Count a step, or a part of one that waits for a copy in between."""
        step = self._step + seconds
        mean = sum(self._recent) / len(self._recent) if len(self._recent) >= LEAST_STEPS else step
        slow = min(step - mean, seconds) if step > max(SLOW_FACTOR * mean, mean + SLOW_SECONDS) else 0.0
        self._seconds[TimeClass.TRAINING] += seconds - slow
        self._seconds[TimeClass.SLOW] += slow
        self._step = step - slow

    def _end_step(self) -> None:
        self._steps += 1
        if self._steps > SKIPPED_STEPS:
            self._recent.append(self._step)
        self._step = 0.0

    def split(self) -> None:
        """Count the current phase until now."""
        if self.phase is not Phase.NOTHING:
            self.enter(self.phase)

    def set_training(self, seconds: float) -> None:
        """Go back to a checkpoint at which so much training counted; the rest is redone."""
        undone = self._seconds[TimeClass.TRAINING] - seconds
        if undone > 0:
            self._seconds[TimeClass.TRAINING] -= undone
            self._seconds[TimeClass.REDONE] += undone

    @property
    def seconds(self) -> dict[TimeClass, float]:
        """Seconds by class until the current phase began."""
        return dict(self._seconds)

    @property
    def elapsed(self) -> float:
        """Seconds since the first phase."""
        return self._clock() - self.started
