"""A process of the user's program: started so that it cannot outlive us, asked to stop by the signal that it wishes."""

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ropewalk.cluster.errors import ConfigError

SCHEDULER_SECONDS = 3.0  # by which the word of a stop may come after the scheduler's own signal to the program
LOOK_SECONDS = 0.2  # between two looks whether the program was asked to stop; its end is noticed at once
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Reader(Protocol):
    """Who reads a program's output, and passes it on."""

    def fileno(self) -> int:
        """The descriptor that the program writes to."""
        ...

    def started(self) -> None:
        """The program has its own copy of the descriptor."""
        ...


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

    def __init__(self, words: Sequence[str], folder: str, environment: Mapping[str, str], output: Reader | None = None) -> None:
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
