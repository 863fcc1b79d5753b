"""A supervised process of a serving run, restarted whenever it ends."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.secrets.variables import RunSecrets

log = logging.getLogger(__name__)

MAX_DEATHS, DEATHS_SECONDS = 10, 60.0  # more deaths within this time are a failure of the run
PAUSE_SECONDS = 0.2


class Child:
    """One process, restarted by calling `restart_if_ended` regularly."""

    def __init__(
        self, name: str, command: Sequence[str], log_file: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.name, self.command, self.log_file = name, list(command), log_file
        self._environment, self._pass_fds = dict(environment), pass_fds
        self._deaths: list[float] = []
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with child_output(self.log_file, RunSecrets.inherited()) as stream, stop_signals_blocked():
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **self._environment},
                pass_fds=self._pass_fds,
                start_new_session=True,  # it gets no signals sent to the parent's group
            )

    def restart_if_ended(self) -> int | None:
        """Restart the process if it has ended, and return the exit code of the ended one. Raises RuntimeError if it ends too
        often.
        """
        code = self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        self._deaths = [*(death for death in self._deaths if now - death < DEATHS_SECONDS), now]
        if len(self._deaths) > MAX_DEATHS:
            raise RuntimeError(
                f"the {self.name} ended {len(self._deaths)} times in {DEATHS_SECONDS:.0f} s: {self.last_log_line()}"
            )
        log.warning("the %s ended with exit code %d and is restarted", self.name, code)
        time.sleep(PAUSE_SECONDS)
        self.process = self._start()
        return code

    def last_log_line(self) -> str:
        lines = [line.strip() for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-500:] if lines else f"its log is empty ({self.log_file})"

    def end(self, seconds: float = 0.0) -> None:
        """Kill the process and its descendants; with `seconds`, first send SIGINT and wait that long."""
        processes = family(self.process.pid)
        if seconds:
            self.process.send_signal(signal.SIGINT)
            psutil.wait_procs(processes, timeout=seconds)
        end(process for process in processes if process.is_running())
        self.process.wait()
