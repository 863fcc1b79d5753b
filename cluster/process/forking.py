"""Start of programs by forking this process, so that they share the modules that it has imported.

A process that forks must have only its main thread, no process group of torch.distributed and no CUDA context.
"""

import gc
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
NVML_VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"  # makes torch count GPUs by NVML instead of initializing CUDA


class Process(Protocol):
    """Common interface of `subprocess.Popen`, `Forked`, and handles of processes on other machines."""

    pid: int

    @property
    def args(self) -> Any: ...

    @property
    def returncode(self) -> Any:
        """The last result of `poll`: None while the process runs, minus the signal that ended it, or its exit code."""
        ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...


def wait_by_polling(process: Process, timeout: float | None, pause_seconds: float) -> int:
    """Implementation of `Process.wait` for a process that can only be polled."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (code := process.poll()) is None:
        if deadline is not None and time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
        time.sleep(pause_seconds)
    return code


class Forked:
    """A child of this process, forked by `fork_program`."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid, self.args = pid, command
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # `ropewalk.cluster.process.kill.end` has killed and reaped it
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return wait_by_polling(self, timeout, POLL_SECONDS)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def preload_modules(run: RunDir) -> list[str]:
    """Return the modules that all processes of the run need; the process that forks them imports these once."""
    if Engine(run.record["engine"]) is not Engine.RANKS:
        return ["ropewalk.cluster.agent.agent"]
    return [
        "ropewalk.cluster.agent.agent",
        "ropewalk.cluster.engines.group_server",
        "ropewalk.cluster.engines.ranks",
        *rank_modules(run),
    ]


def rank_modules(run: RunDir) -> list[str]:
    """Return the modules of a run's job that its ranks need: what the job names, or else torch."""
    return list(run.record.get("preload") or ["torch"])


def import_modules(modules: Sequence[str]) -> None:
    """Import the modules that children will need. An import error is only logged: the children will fail with the same error."""
    os.environ[NVML_VARIABLE] = "1"
    for name in modules:
        before = cuda_is_initialized()
        try:
            import_module(name)
        except Exception as error:
            log.warning("%s could not be preloaded: %s: %s", name, type(error).__name__, error)
        if cuda_is_initialized() and not before:
            log.error("%s initializes CUDA when it is imported; do that in a function instead", name)


def are_imported(modules: Sequence[str]) -> bool:
    """Return True if all these modules are imported in this process."""
    return all(name in sys.modules for name in modules)


def cuda_is_initialized() -> bool:
    """Return True if this process has a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())


def refuse_cuda() -> None:
    """Raise ConfigError if this process has a CUDA context, since a child forked from it could not use a GPU."""
    if cuda_is_initialized():
        raise ConfigError(
            "CUDA is initialized in the process that ranks are forked from, so they could not use a GPU; the log names the"
            " module that initializes it on import: do that in a function, or remove the module from the job's preload"
        )


def fork_program(command: Sequence[str], environment: Mapping[str, str], output: Path) -> Forked:
    """Fork a child that runs `python -P -m MODULE ARGUMENTS...` by calling the module's `main`, in a new session.

    Its output is appended to the file `output`. Stop signals stay pending until it calls
    `ropewalk.cluster.process.signals.install_stop_handler`.
    """
    assert command[1:3] == ["-P", "-m"], command
    refuse_cuda()
    sys.stdout.flush()
    sys.stderr.flush()
    # setproctitle locates the title by the environment, which the child replaces. Not earlier: it hides the environment in /proc
    setproctitle.getproctitle()
    with stop_signals_blocked():
        pid = os.fork()
        if pid == 0:
            _become(command, environment, output)
    return Forked(pid, command)


def _become(command: Sequence[str], environment: Mapping[str, str], output: Path) -> NoReturn:
    """Give the child the state of a newly started process, run the program, and exit."""
    code = 1
    try:
        gc.freeze()  # collections leave out what the parent imported, and so copy none of its memory
        os.setsid()
        _redirect(output)
        wanted = dict(environment)  # a copy, since `environment` may be os.environ itself
        os.environ.clear()
        os.environ.update(wanted)
        tempfile.tempdir = None
        for number in (*STOP_SIGNALS, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.argv = list(command[3:])
        folders = [*filter(None, wanted.get("PYTHONPATH", "").split(os.pathsep))]  # the search path of `python -P -m`
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]
        # `processes_of` finds the child by TMPDIR in its title, since /proc shows the parent's environment
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
        os._exit(code)  # without the exit handlers of the parent


def _program(name: str) -> str:
    """Return the module that `python -m NAME` runs: `__main__` of a package, else NAME itself."""
    spec = find_spec(name)
    return f"{name}.__main__" if spec is not None and spec.submodule_search_locations is not None else name


def _redirect(output: Path) -> None:
    with open(os.devnull, "rb") as nothing, output.open("ab", buffering=0) as stream:
        os.dup2(nothing.fileno(), 0)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # otherwise pipes and sockets of the parent would stay open


@contextmanager
def forked_interpreters() -> Iterator[None]:
    """Make multiprocessing start its fork server by forking this process instead of a new interpreter."""
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
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        # close all others, above all the write end of the pipe whose closing tells the server to exit
        needed = sorted({0, 1, 2, *descriptors})
        for low, high in zip(needed, [*needed[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        exec(code, {})  # noqa: S102 - the code that multiprocessing passes to a new interpreter
    except Exception:
        traceback.print_exc()  # as a new interpreter would
    finally:
        os._exit(0)
