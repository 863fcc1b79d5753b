"""A process of the user's program: how it is started and stopped, and the metrics that are read from its output."""

import ctypes
import logging
import math
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ropewalk.cluster.errors import ConfigError, StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.results.metrics import MetricLog

log = logging.getLogger(__name__)

SCHEDULER_SECONDS = 3.0  # by which the word of a stop may come after the scheduler's own signal to the program
LOOK_SECONDS = 0.2  # between two looks whether the program was asked to stop; its end is noticed at once
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
_PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 16  # what is longer is no line of a log
_LIBC = ctypes.CDLL(None)


class Output:
    """Reads a program's output, copies it to this process's own, and logs the metrics that it finds."""

    def __init__(self, context: JobContext, config: CommandConfig) -> None:
        self._read, self._write = os.pipe()
        self._log, self._run, self._total = MetricLog(context), context.run, config.steps
        self._patterns = {name: re.compile(pattern) for name, pattern in config.metrics.items()}
        self._step_pattern = re.compile(config.step_pattern) if config.step_pattern else None
        self._step = 0
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    def fileno(self) -> int:
        """The end of the pipe that the program writes to."""
        return self._write

    def started(self) -> None:
        """Begin to read: the program holds the pipe's other end now."""
        os.close(self._write)
        self._thread.start()

    def close(self) -> None:
        """Wait until all that was written is read; whatever the program has left running may hold the pipe open, and is left."""
        self._thread.join(timeout=5.0)

    def _copy(self) -> None:
        rest = b""
        while chunk := os.read(self._read, CHUNK_BYTES):
            os.write(1, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-LONGEST_LINE_BYTES:]
            self._take(lines)
        self._take([rest])

    def _take(self, lines: list[bytes]) -> None:
        """Log what is found. Whatever goes wrong with that, the program's output is read on, or the program would stand still."""
        try:
            self._log_lines(lines)
        except StaleAttemptError:  # another attempt writes the metrics now
            pass
        except OSError as error:
            log.warning("metrics of the program are not written: %s", error)

    def _log_lines(self, lines: list[bytes]) -> None:
        found = []
        for raw in lines:
            line = raw.decode(errors="replace")
            read = {name: _number(pattern.search(line)) for name, pattern in self._patterns.items()}
            values = {name: value for name, value in read.items() if value is not None}
            if self._step_pattern is not None:
                step = _number(self._step_pattern.search(line))
                self._step = int(step) if step is not None and math.isfinite(step) else self._step
            elif values:
                self._step += 1
            if values:
                found.append((self._step, values))
        for step, values in found:
            self._log.log(step, values)
        if found:
            progress = {"stage": "train", "done": self._step, "total": self._total, "unit": "steps"}
            write_json(self._run.progress, progress, durable=False)


class Stops:
    """Whether this process was asked to stop, by files, and whether the program was told."""

    def __init__(self, flags: Sequence[Path | None], signal_name: str) -> None:
        self._flags = [str(flag) for flag in flags if flag is not None]
        self._signal = signal.Signals[f"SIG{signal_name}"]
        self.sent: signal.Signals | None = None

    def asked(self) -> bool:
        """One of the files exists."""
        return any(map(os.path.exists, self._flags))

    def await_word(self, seconds: float) -> None:
        """A stop signal has ended the program that we have not sent: wait for the word that tells whether it was a stop."""
        deadline = time.monotonic() + seconds
        while not self.asked() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        if self.asked():
            self.sent = self._signal

    def tell(self, process: subprocess.Popen[bytes]) -> None:
        """Send the program its signal, once."""
        if self.sent is None and self.asked():
            self.sent = self._signal
            process.send_signal(self._signal)


class Program:
    """The program of one rank, one node, or of the whole run."""

    def __init__(self, words: Sequence[str], folder: str, environment: Mapping[str, str], output: Output | None = None) -> None:
        """Start the program. Raises ConfigError if the program or its folder does not exist, or may not be executed."""
        try:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output.fileno() if output is not None else None,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,  # signals are for it alone, and what it starts is found by its session
                preexec_fn=_prepare(os.getpid()),  # noqa: PLW1509 - two system calls, no lock is taken
            )
        except FileNotFoundError as error:
            what = f"directory {folder}" if error.filename == folder else f"program {words[0]!r}"
            raise ConfigError(f"command: there is no {what} on this node; is it installed, and does PATH name it?") from None
        except PermissionError:
            raise ConfigError(f"command: {words[0]!r} may not be executed; chmod +x it, or name its interpreter") from None
        if output is not None:
            output.started()

    def wait(self, stops: Stops) -> int:
        """Wait for the program's end, and tell it of a stop meanwhile; its exit code, negative for a signal."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            while not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
                stops.tell(self.process)
        finally:
            os.close(descriptor)
        code = self.process.wait()
        if -code in STOPS and stops.sent is None:
            stops.await_word(SCHEDULER_SECONDS)
        return code


def _prepare(parent: int) -> Callable[[], None]:
    """In the child before exec: hear all signals again, and die with the process that started it."""

    def prepare() -> None:
        # schedulers signal every process of a job: what is meant for the agent must not end a program that does not know it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def _number(match: re.Match[str] | None) -> float | None:
    if match is None or match[1] is None:  # a group of an alternative that did not match
        return None
    try:
        return float(match[1].replace(",", ""))
    except ValueError:
        return None
