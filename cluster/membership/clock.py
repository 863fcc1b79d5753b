"""Clock that counts only time in which this process was running."""

import time
from collections.abc import Callable

LONGEST_PAUSE_SECONDS = 0.25  # between two readings; in the rest of a longer pause this process could not run


class RunningClock:
    """Seconds in which this process was running. Read it often: a pause counts as a quarter second at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._read, self._now = clock, clock(), 0.0

    def __call__(self) -> float:
        read = self._clock()
        self._now += min(read - self._read, LONGEST_PAUSE_SECONDS)
        self._read = read
        return self._now
