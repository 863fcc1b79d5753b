"""Steps between two copies of the state to the memory of nodes: as configured, or measured in each group of ranks."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Literal

from ropewalk.sharding.group import Group

SHARE = 0.01  # of a step's time that copies may take
FIRST_STEPS = 3  # that are not measured
MEASURED_STEPS = 8  # with a copy each, and then as many without


class CopyInterval:
    """Decides after which steps the state is copied: the same on every rank.

    `auto` is the smallest interval at which copies take at most 1% of the time, but not more than `most`. The first steps of a
    group measure it: the state is copied after each, and then not at all for some steps.
    """

    def __init__(
        self,
        every_steps: int | Literal["auto"] | None,
        most: int,
        group: Group,
        event: Callable[..., None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._every = None if every_steps == "auto" else every_steps
        self._measures = every_steps == "auto"
        self._most, self._group, self._event, self._clock = most, group, event, clock
        self._ends: list[float] = []  # of the steps so far

    def due(self, step: int) -> bool:
        """Return True if the state after this step is copied."""
        if self._measures:
            return len(self._ends) < FIRST_STEPS + MEASURED_STEPS
        return self._every is not None and step % self._every == 0

    @property
    def each_step(self) -> bool:
        """True if the state is copied after each step from now on."""
        return self._every == 1

    def end_step(self, step: int) -> None:
        """Count a step. All ranks agree on the interval when enough are measured."""
        if not self._measures:
            return
        self._ends.append(self._clock())
        if len(self._ends) == FIRST_STEPS + 2 * MEASURED_STEPS + 2:
            seconds = [end - begin for begin, end in zip(self._ends[:-1], self._ends[1:], strict=True)][FIRST_STEPS:]
            copying, others = (statistics.median(part) for part in (seconds[:MEASURED_STEPS], seconds[-MEASURED_STEPS:]))
            cost, others = self._group.broadcast_object([max(copying - others, 0.0), others])
            self._every, self._measures = min(self._most, max(1, math.ceil(cost / others / SHARE))), False
            self._event("memory_interval", step=step, every_steps=self._every, copy_seconds=cost, step_seconds=others)
