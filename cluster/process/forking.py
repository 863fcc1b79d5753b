"""Start our own programs by forking this process, so that they need not import again what it has imported.

A process that forks must have no thread of its own beside the main one, no process group of ranks and no CUDA context.
"""

import logging
import multiprocessing.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol

import setproctitle

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.signals import STOP_SIGNALS, stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Engine

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01
NVML_VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"  # with it torch asks NVML for GPUs; else asking would start CUDA


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common: a child of this process, or its stand-in for one elsewhere."""

    pid: int

    @property
    def args(self) -> Any:
        """The command line."""
        ...

    @property
    def returncode(self) -> Any:
        """The last result of `poll`: None while the process runs, minus the signal that ended it, else its exit code."""
        ...

    def poll(self) -> int | None:
        """Return the exit code as `returncode` has it, or None while the process runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process; returns its exit code. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send the process a signal; do nothing if it has ended."""
        ...

    def terminate(self) -> None:
        """Send the process SIGTERM."""
        ...


def wait_by_polling(process: Process, timeout: float | None, pause_seconds: float) -> int:
    """Implement `Process.wait` for a process that can only be polled."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (code := process.poll()) is None:
        if deadline is not None and time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
        time.sleep(pause_seconds)
    return code


class Forked:
    """A child of this process that `fork_program` has forked."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid, self.args = pid, command
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended the child, or None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # `ropewalk.cluster.process.kill.end` has killed it, and seen it go
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child's end; returns its exit code. Raises subprocess.TimeoutExpired."""
        return wait_by_polling(self, timeout, POLL_SECONDS)

    def send_signal(self, sig: int) -> None:
        """Send the child a signal; do nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send the child SIGTERM."""
        self.send_signal(signal.SIGTERM)


def preload_modules(run: RunDir) -> list[str]:
    """The modules that all processes of the run need, which a process that forks them imports once."""
    if Engine(run.record["engine"]) is not Engine.RANKS:
        return ["ropewalk.cluster.agent.agent"]
    return [
        "ropewalk.cluster.agent.agent",
        "ropewalk.cluster.engines.store",
        "ropewalk.cluster.engines.ranks",
        *(run.record.get("preload") or []),
    ]


def import_modules(modules: Sequence[str]) -> None:
    """Import what children will need. A module that fails to import is left to the children, whose own logs then say so."""
    os.environ[NVML_VARIABLE] = "1"
    for name in modules:
        before = cuda_runs()
        try:
            import_module(name)
        except Exception as error:
            log.warning("%s could not be preloaded: %s: %s", name, type(error).__name__, error)
        if cuda_runs() and not before:
            log.error("%s initializes CUDA when it is imported; do that in a function instead", name)


def all_imported(modules: Sequence[str]) -> bool:
    """Return whether children would find all these modules imported."""
    return all(name in sys.modules for name in modules)


def cuda_runs() -> bool:
    """Return whether this process has a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())


def refuse_cuda() -> None:
    """Raise ConfigError if this process has a CUDA context: no child that is forked from it could use a GPU."""
    if cuda_runs():
        raise ConfigError(
            "CUDA was initialized in a process that ranks are forked from, and they could not use a GPU; the log names the"
            " module that initializes it on import: do that in a function, or remove the module from the job's preload"
        )


def fork_program(command: Sequence[str], environment: Mapping[str, str], output: Path) -> Forked:
    """Fork a child that runs `python -P -m MODULE WORDS...` by calling the module's `main`, in a session of its own.

    Its output goes to the end of the file `output`. Stop signals are blocked in it, and none is lost, until it calls
    `ropewalk.cluster.process.signals.install_stop_handler`.
    """
    assert command[1:3] == ["-P", "-m"], command
    refuse_cuda()
    sys.stdout.flush()
    sys.stderr.flush()
    # it finds the title's place by the environment, before the child changes that; and hides it from /proc, so not any sooner
    setproctitle.getproctitle()
    with stop_signals_blocked():
        pid = os.fork()
        if pid == 0:
            _become(command, environment, output)
    return Forked(pid, command)


def _become(command: Sequence[str], environment: Mapping[str, str], output: Path) -> NoReturn:
    """In the child: restore what a newly started process would have, and run the program."""
    code = 1
    try:
        os.setsid()
        _redirect(output)
        wanted = dict(environment)  # which may be os.environ itself
        os.environ.clear()
        os.environ.update(wanted)
        tempfile.tempdir = None
        for word in (*STOP_SIGNALS, signal.SIGINT, signal.SIGCHLD):
            signal.signal(word, signal.default_int_handler if word == signal.SIGINT else signal.SIG_DFL)
        sys.argv = list(command[3:])
        places = [*filter(None, wanted.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -P -m` would look
        sys.path[:0] = [place for place in places if place not in sys.path]
        # whoever looks for processes of a directory finds them by it, since /proc shows the parent's environment
        setproctitle.setproctitle(" ".join([*command, f"TMPDIR={wanted.get('TMPDIR', '')}"]))
        import_module(_program(command[3])).main()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # what the parent registered for its own end is not this process's


def _program(name: str) -> str:
    """The module that `python -m NAME` runs: `__main__` of a package, else NAME itself."""
    spec = find_spec(name)
    return f"{name}.__main__" if spec is not None and spec.submodule_search_locations is not None else name


def _redirect(output: Path) -> None:
    with open(os.devnull, "rb") as nothing, output.open("ab", buffering=0) as stream:
        os.dup2(nothing.fileno(), 0)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # a pipe or socket of the parent would stay open for whoever reads its end


@contextmanager
def forked_interpreters() -> Iterator[None]:
    """Make multiprocessing fork this process where it would start a new interpreter for its fork server."""
    spawn: Any = multiprocessing.util.spawnv_passfds

    def fork(path: Any, arguments: Sequence[Any], descriptors: Sequence[int]) -> int:
        code = os.fsdecode(arguments[-1])
        if "forkserver" not in code:
            return int(spawn(path, arguments, descriptors))
        pid = os.fork()
        if pid == 0:
            _serve(code, descriptors)
        return pid

    multiprocessing.util.spawnv_passfds = fork  # type: ignore[assignment]
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = spawn


def _serve(code: str, descriptors: Sequence[int]) -> NoReturn:
    for word in STOP_SIGNALS:
        signal.signal(word, signal.SIG_DFL)
    try:
        # above all the pipe by whose end the server learns that nobody needs it any more
        kept = sorted({0, 1, 2, *descriptors})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        exec(code, {})  # noqa: S102 - multiprocessing's own words, which a new interpreter would run
    finally:
        os._exit(0)
