"""Programs of this repository, forked from the server with the imports of all tests: each starts within some 50 ms of CPU time.

Tests that are about the start of a program, or about its imports, start an interpreter.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import setproctitle

from tests.fork_server import SERVER

DESCRIPTORS = ("--listen", "--fd")  # options of our programs with an inherited descriptor; a writer's is its first argument


class Descriptor:
    """A descriptor that a new process inherits, there under another number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _inherited, (DupFd(self.number),)


def _inherited(duplicate: Any) -> Descriptor:
    return Descriptor(duplicate.detach())


class Forked:
    """`python -P -m MODULE ARGUMENTS...` as by `subprocess.Popen`, in a session of its own and without pipes."""

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = None,
        stderr: Any = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = True,
    ) -> None:
        self.args = [str(word) for word in args]
        assert self.args[1:3] == ["-P", "-m"], args
        with open(os.devnull, "rb") as nothing:
            numbers = [_number(stdin, nothing.fileno()), _number(stdout, 1), _number(stderr, 2)]
            numbers[2] = numbers[1] if stderr == subprocess.STDOUT else numbers[2]
            streams = [Descriptor(number) for number in numbers]
            inherited = {str(number): Descriptor(number) for number in pass_fds}
            state = (
                dict(os.environ if env is None else env),
                str(cwd or Path.cwd()),
                signal.pthread_sigmask(signal.SIG_BLOCK, []),
            )
            self._process = SERVER.Process(target=_become, args=(self.args, state, streams, inherited))
            self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _number(stream: Any, default: int) -> int:
    if stream is None or stream in (subprocess.DEVNULL, subprocess.STDOUT):
        return default
    return stream if isinstance(stream, int) else int(stream.fileno())


def run_forked(
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str = "",  # noqa: A002 - as it is called there
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = True,
    text: bool = True,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, and return its output, as `subprocess.run` does."""
    assert capture_output
    assert text
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        streams[0].write(input)
        streams[0].seek(0)
        stdin, stdout, stderr = streams
        code = Forked(args, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr).wait(timeout)
        for stream in (stdout, stderr):
            stream.seek(0)
        done = subprocess.CompletedProcess(list(args), code, stdout.read(), stderr.read())
    if check:
        done.check_returncode()
    return done


def _start(args: Sequence[str], **options: Any) -> Any:
    return (Forked if list(args[1:3]) == ["-P", "-m"] else subprocess.Popen)(args, **options)


# takes the place of `subprocess` in a module whose programs are to be forked
FORKING = SimpleNamespace(**{**vars(subprocess), "Popen": _start, "run": run_forked})


def _become(
    args: list[str], state: tuple[dict[str, str], str, set[int]], streams: list[Descriptor], inherited: dict[str, Descriptor]
) -> None:
    """Do in a fork what a new interpreter would do."""
    environment, folder, blocked = state
    setproctitle.getproctitle()  # it finds the title by the environment, which is replaced
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has replaced it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    module, *arguments = args[3:]
    for at, argument in enumerate(arguments):
        if argument in inherited and (at == 0 or arguments[at - 1] in DESCRIPTORS):
            arguments[at] = str(inherited[argument].number)
        elif at > 0 and arguments[at - 1] == "--parent":  # with which it ends
            arguments[at] = str(os.getppid())
    setproctitle.setproctitle(" ".join([*args, f"TMPDIR={environment.get('TMPDIR', '')}"]))
    sys.argv = ["-m", *arguments]
    for name in (module, f"{module}.__main__"):
        if not hasattr(sys.modules.get(name), "__path__"):
            sys.modules.pop(name, None)  # it runs as __main__
    runpy.run_module(module, run_name="__main__", alter_sys=True)
