"""A part of a serving run: a process that is started again whenever it ends."""

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.signals import stop_signals_blocked

log = logging.getLogger(__name__)

DEATHS, DEATHS_SECONDS = 10, 60.0  # so many deaths in so many seconds are no accident
PAUSE_SECONDS = 0.2


class Child:
    """One process. It is looked after by calling `look` often."""

    def __init__(self, name: str, words: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> None:
        self.name, self.words, self.log_file = name, list(words), log_file
        self._environment = dict(environment)
        self._deaths: list[float] = []
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log_file.open("ab") as stream, stop_signals_blocked():
            return subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **self._environment},
                start_new_session=True,  # signals are for it alone
            )

    def look(self) -> int | None:
        """Start the process again if it has ended; returns the exit code of the one that has, if so. Raises RuntimeError where
        it ends again and again.
        """
        code = self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        self._deaths = [*(death for death in self._deaths if now - death < DEATHS_SECONDS), now]
        if len(self._deaths) > DEATHS:
            raise RuntimeError(f"the {self.name} ended {len(self._deaths)} times in {DEATHS_SECONDS:.0f} s: {self.last_words()}")
        log.warning("the %s ended with %d; it is started again", self.name, code)
        time.sleep(PAUSE_SECONDS)
        self.process = self._start()
        return code

    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line.strip() for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-500:] if lines else f"it said nothing ({self.log_file})"

    def end(self, seconds: float = 0.0) -> None:
        """End the process and what it has started: asked to by SIGTERM where it gets time, then killed."""
        everyone = family(self.process.pid)
        if seconds:
            self.process.terminate()
            psutil.wait_procs(everyone, timeout=seconds)
        end(process for process in everyone if process.is_running())
        self.process.wait()
