"""A watch over the first node of an elastic job, from another node: the job script dies with it, and Slurm does not mind."""

import time
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

from cluster.run.files import write_atomically
from slurm.batch.script import hurry_lines, render_guard

if TYPE_CHECKING:
    from slurm.runtime.allocation import SlurmAllocation

BEAT_SECONDS = 3.0


class Guard:
    """Touches a file while this process lives, and keeps a step of guard.sh on a node that is not this one."""

    def __init__(self, lane: "SlurmAllocation") -> None:
        self._lane = lane
        self._step: Popen[bytes] | None = None
        self._next_beat = 0.0

    def tend(self) -> None:
        """Call it often while an elastic run is at work."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_SECONDS
        beat = self._lane.run.path / "beat"
        beat.touch()
        if self._step is None or self._step.poll() is not None:
            self._step = self._start(beat)

    def _start(self, beat: Path) -> Popen[bytes] | None:
        slots = self._lane.slots
        others = [n for n, slot in slots.items() if slot.job == self._lane.job and not slot.dead and slot.host != slots[0].host]
        if not others:
            return None  # with its last node Slurm requeues the job itself
        folder = self._lane.run.attempt_dir(self._lane.run.attempts()[-1])
        write_atomically(folder / "guard.sh", render_guard(hurry_lines(self._lane.profile)))
        words = [*self._lane.srun(others[0]), "bash", str(folder / "guard.sh"), str(beat)]
        return self._lane.open(words, folder / "logs" / "guard.log")

    def close(self) -> None:
        """Nobody needs to watch any more."""
        if self._step is not None:
            self._lane.end(self._step)
        (self._lane.run.path / "beat").unlink(missing_ok=True)
