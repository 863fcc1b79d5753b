"""A Python program of the user's, forked from this process, which has imported torch already: the program need not again.

Only where nothing tells it from a program that an interpreter was started for: the command names this interpreter and a script
or a module, none of the variables that interpreters and libraries read as they load is another one or is set by the program, and
nothing in the program's folder has the name of what is loaded. Everything else is executed.
"""

import atexit
import contextlib
import faulthandler
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

import setproctitle

from ropewalk.cluster.engines.stacks import STACKS_SIGNAL
from ropewalk.cluster.process.forking import Forked, cuda_is_initialized
from ropewalk.cluster.run.context import GROUP_VARIABLE, STOP_VARIABLE
from ropewalk.jobs.orchestration.command.script import READ_AS_THEY_LOAD, script_of, sets_variables, sources

setproctitle.getproctitle()  # it looks for the title's place, which ends at the first variable that has changed since the start

LIBRARY = "torch"  # what makes it worth it
LONGEST_TITLE = 300  # of a command in the title of its process: behind it comes what the process is found by


@dataclass(frozen=True)
class Script:
    """A program that may be forked: a file, or a module as `python -m` runs it, and its arguments."""

    name: str
    arguments: tuple[str, ...]
    is_module: bool
    place: str  # the first folder that it imports from

    def execute(self) -> None:
        """Run it as the main module of this process; what it raises is raised."""
        if self.is_module:
            sys.argv = [self.name, *self.arguments]
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
            return
        sys.argv = [self.name, *self.arguments]
        main, file = ModuleType("__main__"), os.path.abspath(self.name)
        loader = SourceFileLoader("__main__", file)
        main.__dict__.update(__file__=file, __loader__=loader, __builtins__=__builtins__, __spec__=None)
        sys.modules["__main__"] = main
        exec(compile(Path(file).read_bytes(), file, "exec"), main.__dict__)  # noqa: S102 - the user's own program


def forkable(words: Sequence[str], folder: str, environment: Mapping[str, str]) -> Script | None:
    """The program, if a fork of this process runs it as a new interpreter would; else None."""
    found = script_of(words)
    if found is None or LIBRARY not in sys.modules or cuda_is_initialized() or not _same_interpreter(words[0], environment):
        return None
    name, arguments, is_module = found
    place = folder if is_module else os.path.dirname(os.path.join(folder, name))
    file = _file(Path(folder), name) if is_module else Path(folder, name)
    if not os.path.isdir(folder) or not (is_module or file.is_file()) or _shadows(place):
        return None
    if file.is_file() and any(map(sets_variables, sources(file, Path(place)))):
        return None
    if any(environment.get(key) != os.environ.get(key) for key in {*environment, *os.environ} if READ_AS_THEY_LOAD.match(key)):
        return None
    return Script(name, arguments, is_module, place)


def _file(folder: Path, module: str) -> Path:
    """Where a module's own text is, if it lies below the folder; else a file that is not there."""
    path = folder.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def _same_interpreter(word: str, environment: Mapping[str, str]) -> bool:
    found = shutil.which(word, path=environment.get("PATH"))
    if found is None:
        return False
    here = Path(sys.executable)
    return os.path.samefile(os.path.dirname(found), here.parent) and os.path.samefile(found, here)


def _shadows(place: str) -> bool:
    """Whether the folder has a module of the name of one that is loaded from elsewhere: the program would get the wrong one."""
    names = set()
    with os.scandir(place) as entries:
        for entry in entries:
            stem, dot, ending = entry.name.partition(".")
            if (dot and ending in {"py", "so"}) or os.path.exists(os.path.join(entry.path, "__init__.py")):
                names.add(stem)
    return bool(names & {name.partition(".")[0] for name in sys.modules} - {"__main__", "setup"})


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a program is started: its words, where, with which variables, and where its output goes (None: where ours goes)."""

    words: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    output: int | None
    prepare: Callable[[], None]  # what the child does first


def fork_script(script: Script, start: Start) -> Forked:
    """Fork the program, in a session of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(script, start)
    return Forked(pid, start.words)


def _become(script: Script, start: Start) -> NoReturn:
    """In the child: be what a newly started interpreter would be, and run the program."""
    code = 1
    try:
        os.setsid()
        _restore_signals()
        start.prepare()
        _redirect(start.output)
        os.chdir(start.folder)
        wanted = dict(start.environment)  # which may hold os.environ
        os.environ.clear()
        os.environ.update(wanted)
        # whoever looks for processes of a run or a group finds them by it, since /proc shows another environment
        own = [f"{name}={wanted[name]}" for name in (STOP_VARIABLE, GROUP_VARIABLE, "RANK", "ROPEWALK_RUN") if name in wanted]
        setproctitle.setproctitle(" ".join([" ".join(start.words)[:LONGEST_TITLE], *own]))
        _forget(script)
        code = _run(script)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _restore_signals() -> None:
    faulthandler.unregister(STACKS_SIGNAL)
    if not os.environ.get("PYTHONFAULTHANDLER"):  # as in a new interpreter: the frames of this process are not the program's
        faulthandler.disable()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGINT}:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _redirect(output: int | None) -> None:
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _first_of_python(places: Sequence[str]) -> int:
    """Where the interpreter's own folders begin: before them stand PYTHONPATH's, and what was put there since the start."""
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return next((number for number, place in enumerate(places) if os.path.basename(place) == archive), 0)


def _forget(script: Script) -> None:
    """Put back what this process has changed of Python's own state since it was an interpreter that had just started."""
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.excepthook, sys.unraisablehook, threading.excepthook = (
        sys.__excepthook__,
        sys.__unraisablehook__,
        threading.__excepthook__,
    )
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    tempfile.tempdir = None
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    finalize: Any = weakref.finalize
    finalize._registry.clear()  # temporary folders and the like are those of the processes that this one was forked from
    finalize._registered_with_atexit = False
    atexit._clear()
    for last in (logging.shutdown, multiprocessing.util._exit_function):  # type: ignore[attr-defined]
        atexit.register(last)
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [script.place, *places, *sys.path[_first_of_python(sys.path) :]]
    for name in [name for name in sys.modules if name in {"__mp_main__", "ropewalk"}]:
        del sys.modules[name]
    process: Any = multiprocessing.process
    main = process.BaseProcess.__new__(process.BaseProcess)  # as the module makes the one that it has when it is imported
    kept = {key: value for key, value in process._current_process._config.items() if key not in {"daemon", "tempdir"}}
    vars(main).update(_identity=(), _name="MainProcess", _parent_pid=None, _popen=None, _closed=False, _config=kept)
    process._current_process, process._parent_process, process._children = main, None, set()
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    forkserver: Any = multiprocessing.forkserver
    forkserver._forkserver.__init__()
    tracker: Any = multiprocessing.resource_tracker
    tracker._resource_tracker._fd = tracker._resource_tracker._pid = None
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True, line_buffering=True)  # type: ignore[union-attr]


def _run(script: Script) -> int:
    """Run the program to its end as an interpreter does; its exit code."""
    code, interrupted = 0, False
    try:
        script.execute()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if not (leave.code is None or isinstance(leave.code, int)):
            sys.stderr.write(f"{leave.code}\n")
    except BaseException as error:
        error.__traceback__ = _own_frames(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _own_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this module and of runpy, by which the program was entered."""
    while frames is not None and frames.tb_frame.f_code.co_filename in {__file__, "<frozen runpy>", runpy.__file__}:
        frames = frames.tb_next
    return frames
