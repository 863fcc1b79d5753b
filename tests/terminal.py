"""A command at a terminal of its own, as a person would type it."""

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psutil

from ropewalk.cluster.process.kill import processes_with
from tests.patience import HANG_SECONDS, until

CLIENT_SECONDS = 10.0  # after the client's death nothing of its session is left


def sleepers(variables: Mapping[str, str], seconds: int) -> list[int]:
    """Return the ids of `sleep SECONDS` processes that have these variables."""
    pids = []
    for process in processes_with(variables):
        with suppress(psutil.Error, OSError):  # it has just ended
            if process.cmdline() == ["sleep", str(seconds)]:
                pids.append(process.pid)
    return pids


def check_end_with_client(run: str, kill: Callable[[], object], *, count: int) -> None:
    """Wait until `count` processes `sleep 4321` of a run exist, kill the client that started them, and check that they end."""

    def left() -> list[int]:
        return sleepers({"ROPEWALK_RUN": run}, 4321)

    until(lambda: len(left()) == count)
    kill()
    killed = time.monotonic()
    until(lambda: not left())
    assert time.monotonic() - killed < CLIENT_SECONDS


class Terminal:
    """A process at a pseudo-terminal; its output is read as text."""

    def __init__(self, command: Sequence[str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvp(command[0], command)
        self.output = ""

    def type(self, line: str, end: str = "\n") -> None:
        os.write(self._terminal, f"{line}{end}".encode())

    def resize(self, lines: int, columns: int) -> None:
        termios.tcsetwinsize(self._terminal, (lines, columns))

    def read_until(self, text: str) -> str:
        """Read until the output contains a text."""
        deadline = time.monotonic() + HANG_SECONDS
        while text not in self.output:
            assert time.monotonic() < deadline, f"no {text!r} in {self.output!r}"
            if select.select([self._terminal], [], [], 0.5)[0]:
                with suppress(OSError):  # the process has ended
                    self.output += os.read(self._terminal, 65536).decode(errors="replace")
        return self.output

    def end(self) -> int:
        """Return the exit code of a process that ends by itself."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._terminal)
        return code

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.end()
