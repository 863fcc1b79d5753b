"""Watches the first node of an elastic job from another node.

If the first node dies, so does the job script, and Slurm requeues nothing because the job runs with --no-kill.
"""

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically
from ropewalk.slurm.batch.script import render_watchdog, skip_requeue_delay
from ropewalk.slurm.profile import SlurmProfile

HEARTBEAT_SECONDS = 3.0


class Watchdog:
    """Touches a file while this process is alive, and keeps a step with watchdog.sh running on another node.

    `start_elsewhere` starts a command with a log file as such a step; it returns None if there is no other node, in which case
    Slurm requeues the job itself when its only node dies. `end` ends the step.
    """

    def __init__(
        self,
        run: RunDir,
        profile: SlurmProfile,
        start_elsewhere: Callable[[list[str], Path], Popen[bytes] | None],
        end: Callable[[Popen[bytes]], None],
    ) -> None:
        self._run, self._profile, self._start_elsewhere, self._end = run, profile, start_elsewhere, end
        self._heartbeat = run.path / "beat"
        self._step: Popen[bytes] | None = None
        self._next_heartbeat = 0.0

    def maintain(self) -> None:
        """Touch the file, and start the step if it does not run. Call this often while an elastic run is running."""
        now = time.monotonic()
        if now < self._next_heartbeat:
            return
        self._next_heartbeat = now + HEARTBEAT_SECONDS
        self._heartbeat.touch()
        if self._step is None or self._step.poll() is not None:
            self._step = self._start()

    def _start(self) -> Popen[bytes] | None:
        folder = self._run.attempt_dir(self._run.attempts()[-1])
        script = folder / "guard.sh"
        write_atomically(script, render_watchdog(skip_requeue_delay(self._profile)))
        return self._start_elsewhere(["bash", str(script), str(self._heartbeat)], folder / "logs" / "guard.log")

    def close(self) -> None:
        if self._step is not None:
            self._end(self._step)
        self._heartbeat.unlink(missing_ok=True)
