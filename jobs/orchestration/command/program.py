"""Start and stop the user's program, and read metrics from its output."""

import ctypes
import logging
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ropewalk.cluster.errors import ConfigError, StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.runs.program.verdict import TAIL_BYTES

log = logging.getLogger(__name__)

STOP_FLAG_SECONDS = 3.0  # the stop flag may follow the scheduler's own signal to the program by this much
POLL_SECONDS = 0.2  # between two checks for a stop request; the program's exit is noticed at once
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
_PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 16  # longer lines are cut
_LIBC = ctypes.CDLL(None)


class Output:
    """Reads a program's output, copies it to our own, and logs the metrics in it on rank 0."""

    def __init__(self, context: JobContext, config: CommandConfig) -> None:
        self._read, self._write = os.pipe()
        self._log = MetricLog(context) if context.rank == 0 else None
        self._run, self._total = context.run, config.steps
        self._patterns = {name: re.compile(pattern) for name, pattern in config.metrics.items()}
        self._step_pattern = re.compile(config.step_pattern) if config.step_pattern else None
        self._step = 0
        self._end = b""
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    def fileno(self) -> int:
        """Return the end of the pipe that the program writes to."""
        return self._write

    def start(self) -> None:
        """Start reading; the program has its copy of the pipe's other end."""
        os.close(self._write)
        self._thread.start()

    def close(self) -> None:
        """Wait until the output is read, but not for processes that the program left running with the pipe open."""
        self._thread.join(timeout=5.0)

    def tail(self) -> str:
        """Return the end of the output that was read."""
        return self._end.decode(errors="replace")

    def _copy(self) -> None:
        rest = b""
        while chunk := os.read(self._read, CHUNK_BYTES):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            self._end = (self._end + chunk)[-TAIL_BYTES:]
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-LONGEST_LINE_BYTES:]
            self._try_log(lines)
        self._try_log([rest])

    def _try_log(self, lines: list[bytes]) -> None:
        """Log the metrics in these lines. Errors are not raised: if reading stopped, the program would block on its output."""
        try:
            if self._log is not None:
                self._log_lines(self._log, lines)
        except StaleAttemptError:  # a newer attempt writes the metrics now
            pass
        except OSError as error:
            log.warning("cannot write the program's metrics: %s", error)

    def _log_lines(self, metrics: MetricLog, lines: list[bytes]) -> None:
        logged = []
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
                logged.append((self._step, values))
        for step, values in logged:
            metrics.log(step, values)
        if logged:
            progress = {"stage": "train", "done": self._step, "total": self._total, "unit": "steps"}
            write_json(self._run.progress, progress, durable=False)


class Stops:
    """Stop requests, which are files, and their forwarding to the program as a signal."""

    def __init__(self, flags: Sequence[Path | None], signal_name: str) -> None:
        self._flags = [str(flag) for flag in flags if flag is not None]
        self._signal = signal.Signals[f"SIG{signal_name}"]
        self.sent: signal.Signals | None = None

    def requested(self) -> bool:
        return any(map(os.path.exists, self._flags))

    def await_request(self, seconds: float) -> None:
        """Wait for a stop request after a stop signal from elsewhere has ended the program, to learn whether it was a stop."""
        deadline = time.monotonic() + seconds
        while not self.requested() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self.requested():
            self.sent = self._signal

    def forward(self, process: subprocess.Popen[bytes]) -> None:
        """Send the program its stop signal, once, if a stop is requested."""
        if self.sent is None and self.requested():
            self.sent = self._signal
            process.send_signal(self._signal)


class Program:
    """The user's program of one rank, one node, or the whole run."""

    def __init__(self, command: Sequence[str], folder: str, environment: Mapping[str, str], output: Output | None = None) -> None:
        """Start the program. Raises ConfigError if the program or its folder does not exist, or is not executable."""
        try:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output.fileno() if output is not None else None,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,  # signals of the terminal do not reach it
                preexec_fn=_prepare(os.getpid()),  # noqa: PLW1509 - two system calls, no lock is taken
            )
        except FileNotFoundError as error:
            what = f"directory {folder}" if error.filename == folder else f"program {command[0]!r}"
            raise ConfigError(f"command: there is no {what} on this node; is it installed, and does PATH name it?") from None
        except PermissionError:
            raise ConfigError(f"command: {command[0]!r} is not executable; chmod +x it, or name its interpreter") from None
        if output is not None:
            output.start()

    def wait(self, stops: Stops) -> int:
        """Wait for the program and forward stop requests meanwhile; return its exit code, negative for a signal."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            while not select.select([descriptor], [], [], POLL_SECONDS)[0]:
                stops.forward(self.process)
        finally:
            os.close(descriptor)
        code = self.process.wait()
        if -code in STOPS and stops.sent is None:
            stops.await_request(STOP_FLAG_SECONDS)
        return code


def _prepare(parent: int) -> Callable[[], None]:
    """Return what the child does before exec: unblock signals, and die together with the process that started it."""

    def prepare() -> None:
        # schedulers signal every process of a job; a program without a handler must not die of the agent's signal
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)

    return prepare


def _number(match: re.Match[str] | None) -> float | None:
    if match is None or match[1] is None:  # the group is in an alternative that did not match
        return None
    try:
        return float(match[1].replace(",", ""))
    except ValueError:
        return None
