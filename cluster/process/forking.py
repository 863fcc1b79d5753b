"""Start programs of ours by forking this process: what it has imported they need not import again.

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

from cluster.errors import ConfigError
from cluster.process.signals import STOP_SIGNALS, deaf_children
from cluster.run.directory import RunDir
from cluster.spec import Engine

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01
NVML_VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"  # with it torch asks NVML for GPUs; else asking would start CUDA


class Process(Protocol):
    """A child of this process: what `subprocess.Popen` and `Forked` have in common."""

    pid: int

    @property
    def args(self) -> Any:
        """Its words."""
        ...

    @property
    def returncode(self) -> Any:
        """As `poll` found it last: None while it runs, minus the signal that ended it, else its exit code."""
        ...

    def poll(self) -> int | None:
        """Look whether it has ended."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Nothing happens if it has ended."""
        ...

    def terminate(self) -> None:
        """SIGTERM."""
        ...


def wait_by_polling(process: Process, timeout: float | None, pause_seconds: float) -> int:
    """`wait` of a process that can only be polled."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (code := process.poll()) is None:
        if deadline is not None and time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
        time.sleep(pause_seconds)
    return code


class Forked:
    """A forked child."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid, self.args = pid, command
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As Popen's."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # `cluster.process.kill.end` has killed it, and seen it go
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        return wait_by_polling(self, timeout, POLL_SECONDS)

    def send_signal(self, sig: int) -> None:
        """As Popen's."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGTERM)


def needed(run: RunDir) -> list[str]:
    """The modules that every process of the run would import, one after the other, if this one had not."""
    if Engine(run.record["engine"]) is not Engine.RANKS:
        return ["cluster.agent.agent"]
    return ["cluster.agent.agent", "cluster.engines.store", "cluster.engines.ranks", *(run.record.get("preload") or [])]


def load(modules: Sequence[str]) -> None:
    """Import what children will need. One that cannot be imported is left to them: they say so in their own logs."""
    os.environ[NVML_VARIABLE] = "1"
    for name in modules:
        before = cuda_runs()
        try:
            import_module(name)
        except Exception as error:
            log.warning("%s is not loaded in advance: %s: %s", name, type(error).__name__, error)
        if cuda_runs() and not before:
            log.error("%s starts CUDA as it is imported; it must not before a function of its own is called", name)


def loaded(modules: Sequence[str]) -> bool:
    """Whether children would find all of it imported."""
    return all(name in sys.modules for name in modules)


def cuda_runs() -> bool:
    """Whether this process has a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())


def refuse_cuda() -> None:
    """Raise ConfigError if CUDA runs in this process: no child that is forked from it could use a GPU."""
    if cuda_runs():
        raise ConfigError(
            "CUDA was started in a process that others are forked from, and which could not use a GPU then; the log names the"
            " module that starts it as it is imported: let it do so in a function, or take it out of the job's preload"
        )


def fork_program(command: Sequence[str], environment: Mapping[str, str], output: Path) -> Forked:
    """`python -m MODULE WORDS...` in a session of its own, with its output at the end of a file; calls the module's `main`.

    It is deaf to the scheduler's signals until it hears them (`cluster.process.signals.hear_stops`); none is lost meanwhile.
    """
    assert command[1] == "-m", command
    refuse_cuda()
    sys.stdout.flush()
    sys.stderr.flush()
    # it finds the title's place by the environment, before the child changes that; and hides it from /proc, so not any sooner
    setproctitle.getproctitle()
    with deaf_children():
        pid = os.fork()
        if pid == 0:
            _become(command, environment, output)
    return Forked(pid, command)


def _become(command: Sequence[str], environment: Mapping[str, str], output: Path) -> NoReturn:
    """In the child: look like a process that was started anew, and be the program."""
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
        sys.argv = list(command[2:])
        places = [os.getcwd(), *filter(None, wanted.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` would look
        sys.path[:0] = [place for place in places if place not in sys.path]
        # whoever looks for processes of a directory finds them by it, since /proc shows the parent's environment
        setproctitle.setproctitle(" ".join([*command, f"TMPDIR={wanted.get('TMPDIR', '')}"]))
        import_module(_program(command[2])).main()
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
    """The module that `python -m NAME` runs: of a package its __main__."""
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
    """Inside, multiprocessing forks this process where it would start an interpreter anew (its fork server does)."""
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
