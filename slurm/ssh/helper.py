"""The helper on a login node: runs one command of the user's machine, and ends with the connection.

Usage: ROOT, and three descriptors: frames from the client, frames to it, and the request.
"""

import errno
import fcntl
import json
import os
import pwd
import runpy
import selectors
import shutil
import signal
import sys
import tempfile
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE
from ropewalk.cluster.errors import EXIT_INTERRUPTED, RopewalkError
from ropewalk.cluster.run.content_tree import files_below
from ropewalk.cluster.run.directory import CODE_FOLDER, RUNS_VARIABLE
from ropewalk.cluster.run.files import make_private, write_atomically
from ropewalk.cluster.run.origin import LoginNode, Origin, set_login_node, set_origin
from ropewalk.cluster.run.project import PROJECT_VARIABLE
from ropewalk.slurm.ssh.frames import CHUNK_BYTES, ConnectionEndedError, Frames, Kind
from ropewalk.slurm.ssh.receive import receive_files, receive_trees

PROFILES = ".profiles"  # under the runs' root: profile files, which jobs that submit runs read too
MIRROR = ".from"  # under the runs' root: files of users' machines, by user and path
OUTPUT = ".output-"  # in the mirror: working directories of commands whose files go to the user's machine
COMMAND_MODULE = "ropewalk.jobs.cli"
SILENT_SECONDS = 60.0  # without a sign of life the client's machine sleeps, or is gone
ENDING_SECONDS = 180.0  # for a submission that has begun
POLL_SECONDS = 0.2
MOST_INPUT_BYTES = 1 << 20  # that wait for the command, before the client has to wait
ALIVE_SECONDS = 15.0


def main() -> None:
    """Receive what the command needs, and run it."""
    root, (reading, writing, request_file) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    with os.fdopen(request_file, "rb") as stream:
        request = json.load(stream)
    frames = Frames(reading, writing)
    try:
        try:
            folder = _prepare(frames, root, request)
        except RopewalkError as error:
            frames.send(Kind.ERR, f"error: {error}\n".encode())
            frames.send(Kind.EXIT, {"code": 1, "runs": []})
            return
        except OSError as error:  # such as a full disk
            sys.exit(str(error))
        _Command(frames, root, folder, request).serve()
    except ConnectionEndedError:
        sys.exit(1)


def _prepare(frames: Frames, root: Path, request: dict[str, Any]) -> Path:
    """Bring the files of the request, and return the working directory of the command."""
    with suppress(FileExistsError):
        make_private(root / MIRROR)
    mirror = root / MIRROR / pwd.getpwuid(os.geteuid()).pw_name
    receive_trees(frames, root, request.get("trees") or [])
    receive_files(frames, root, mirror, request.get("files") or {})
    if directory := request.get("directory"):
        folder: Path = mirror / directory
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    mirror.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=OUTPUT, dir=mirror))


def _send_output(frames: Frames, folder: Path) -> None:
    """Send the files that the command wrote with relative paths to the user's machine, and remove them here."""
    for path in files_below(folder, lambda _: True):
        frames.send(Kind.FILE, {"path": str(path.relative_to(folder)), "mode": path.stat().st_mode & 0o777})
        with path.open("rb") as stream:
            frames.send_content(stream)


def _hang_up_without(helper: int) -> None:
    """Hang up this process' session when its helper has died."""
    while os.getppid() == helper:
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGHUP)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:  # a terminal that no process has open any more
            raise
        return b""


def _watch(selector: selectors.BaseSelector, descriptor: int, event: int, *, wanted: bool) -> None:
    if wanted and descriptor not in selector.get_map():
        selector.register(descriptor, event)
    elif not wanted and descriptor in selector.get_map():
        selector.unregister(descriptor)


class _Command:
    """The command, as a child of this process whose streams travel as frames."""

    def __init__(self, frames: Frames, root: Path, folder: Path, request: dict[str, Any]) -> None:
        self._frames, self._root, self._folder, self._request = frames, root, folder, request
        self._pipes = {name: os.pipe() for name in ("in", "out", "err", "runs")}
        self._input, self._input_ended = bytearray(), False  # not yet passed on
        if size := request.get("terminal"):
            for name in ("in", "out"):
                for descriptor in self._pipes[name]:
                    os.close(descriptor)
            terminal, command_side = os.openpty()
            termios.tcsetwinsize(terminal, size)
            self._pipes |= {"in": (os.dup(command_side), os.dup(terminal)), "out": (terminal, command_side)}
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child can take it
        self._child = os.fork()
        if not self._child:
            self._become_command()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.close(self._pipes["in"][0])
        for name in ("out", "err", "runs"):
            os.close(self._pipes[name][1])
        os.set_blocking(self._pipes["in"][1], False)

    def serve(self) -> None:
        """Pass on the streams until the command has ended, or end it with the connection."""
        try:
            if self._request.get("reads_input"):
                self._frames.send(Kind.NEED, {"input": True})
            self._pass_on()
            with os.fdopen(self._pipes["runs"][0], "rb") as stream:
                runs = stream.read().decode().split()
            code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
            if self._folder.name.startswith(OUTPUT):
                _send_output(self._frames, self._folder)
            self._frames.send(Kind.EXIT, {"code": code, "runs": runs})
        except ConnectionEndedError:
            self._end()
            raise
        finally:
            if self._folder.name.startswith(OUTPUT):
                shutil.rmtree(self._folder, ignore_errors=True)

    def _pass_on(self) -> None:
        frames, output = self._frames, {self._pipes["out"][0]: Kind.OUT, self._pipes["err"][0]: Kind.ERR}
        heard_at = said_at = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for descriptor in output:
                selector.register(descriptor, selectors.EVENT_READ)
            while output:
                _watch(selector, frames.reading, selectors.EVENT_READ, wanted=len(self._input) < MOST_INPUT_BYTES)
                _watch(selector, self._pipes["in"][1], selectors.EVENT_WRITE, wanted=bool(self._input))
                for key, _ in selector.select(ALIVE_SECONDS):
                    if key.fd == self._pipes["in"][1]:
                        heard_at = time.monotonic()
                        self._pass_input_on()
                    elif key.fd == frames.reading:
                        heard_at = time.monotonic()
                        self._take(*frames.receive())
                    elif content := _read(key.fd):
                        frames.send_output(output[key.fd], content)
                    else:
                        selector.unregister(key.fd)
                        del output[key.fd]
                now = time.monotonic()
                if now - heard_at > SILENT_SECONDS:
                    raise ConnectionEndedError
                if now - said_at > ALIVE_SECONDS:
                    frames.send(Kind.ALIVE)
                    said_at = now

    def _take(self, kind: Kind, content: bytes) -> None:
        if kind is Kind.SIZE:
            termios.tcsetwinsize(self._pipes["out"][0], json.loads(content))
        elif kind is Kind.INTERRUPT:
            os.kill(self._child, signal.SIGINT)
        elif kind is Kind.INPUT:
            self._input += content
            self._input_ended = not content
            self._pass_input_on()

    def _pass_input_on(self) -> None:
        """Write as much of the input as the command takes now."""
        try:
            if self._input:
                del self._input[: os.write(self._pipes["in"][1], self._input)]
        except BlockingIOError:
            return
        except OSError:  # the command has closed its input
            self._input.clear()
        if self._input_ended and not self._input:
            self._input_ended = False
            os.close(self._pipes["in"][1])

    def _end(self) -> None:
        """Hang up; a submission that has begun is finished first."""
        deadline = time.monotonic() + ENDING_SECONDS
        for name in ("out", "err"):
            os.close(self._pipes[name][0])
        os.killpg(self._child, signal.SIGHUP)
        while not os.waitpid(self._child, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.killpg(self._child, signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    # --- the child

    def _become_command(self) -> None:
        request = self._request
        try:
            os.setsid()
            for name, descriptor in (("in", 0), ("out", 1), ("err", 2)):
                os.dup2(self._pipes[name][0 if name == "in" else 1], descriptor)
            if request.get("terminal"):
                os.dup2(1, 2)
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if not request.get("reads_input"):
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            runs = self._pipes["runs"][1]
            for descriptor in {*(end for pair in self._pipes.values() for end in pair)} - {runs}:
                os.close(descriptor)
            os.close(self._frames.reading)
            threading.Thread(target=_hang_up_without, args=[os.getppid()], daemon=True).start()
            os.chdir(self._folder)
            self._set_environment()
            set_login_node(LoginNode(request["host"], request["cluster"]))
            if origin := request.get("origin"):
                set_origin(Origin(**origin), lambda run: os.write(runs, f"{run}\n".encode()))
            sys.argv[:] = ["ropewalk", *request["arguments"]]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            runpy.run_module(COMMAND_MODULE, run_name="__main__", alter_sys=True)
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except KeyboardInterrupt:  # before the command's own handling
            code = EXIT_INTERRUPTED
        except BaseException:  # a bug: show it as the interpreter would
            sys.excepthook(*sys.exc_info())
            code = 1
        else:
            code = 0
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    def _set_environment(self) -> None:
        request, root = self._request, self._root
        text = json.dumps(request["profiles"], indent=1)  # JSON is YAML
        folder = root / PROFILES
        with suppress(FileExistsError):
            make_private(folder)
        file = folder / f"{request['profiles_name']}.yaml"
        if not file.exists() or file.read_text() != text:
            write_atomically(file, text)
        os.environ |= {RUNS_VARIABLE: str(root), PROFILES_VARIABLE: str(file), **request["environment"]}
        if project := (request.get("origin") or {}).get("project"):
            os.environ[PROJECT_VARIABLE] = str(root / CODE_FOLDER / project["snapshot"] / project["folder"])
