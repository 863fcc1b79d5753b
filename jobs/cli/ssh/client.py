"""Runs a command on a login node, and passes on its streams and its exit code."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import termios
import threading
import tty
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import EXIT_INTERRUPTED, BackendError
from ropewalk.cluster.run.content_tree import LocalTree
from ropewalk.jobs.cli.known_runs import remember
from ropewalk.jobs.cli.ssh.request import Baggage, program_tree
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.ssh.connection import Connection
from ropewalk.slurm.ssh.frames import CHUNK_BYTES, ConnectionEndedError, Frames, Kind

OWN_KEYS = ("host", "ssh")  # of this machine's side of a profile


def run_there(
    cluster: Profile,
    arguments: Sequence[str],
    *,
    baggage: Baggage | None = None,
    submission: str | None = None,
    reads_input: bool = False,
    given_input: bytes | None = None,
    terminal: bool = False,
    write: Callable[[Kind, bytes], None] | None = None,
) -> int:
    """Run a command on the login node of a cluster, and return its exit code. Raises BackendError.

    `baggage`: what a submission takes along. `submission`: the id under which the command may submit or resume runs. With
    `reads_input` it gets this process's standard input, or `given_input` instead; with `terminal` a
    terminal, which is shown at this process's. `write` takes the output, by default to the streams of this process.
    """
    profile = load_section(SlurmProfile, cluster.options, f"cluster {cluster.name!r}")
    assert profile.host is not None
    connection = Connection(cluster.name, profile.host, profile.ssh, terminal=_terminal())
    try:
        frames = connection.frames
        request = _request(cluster, profile, arguments, baggage, submission) | {"reads_input": reads_input or terminal}
        if terminal:
            request["terminal"] = termios.tcgetwinsize(0)
            request["environment"] = {"TERM": os.environ.get("TERM", "xterm")}  # its size and colors are the terminal's own
        try:
            frames.send(Kind.REQUEST, request)
        except ConnectionEndedError:
            raise connection.failure() from None
        connection.greet()
        exit_ = _Answers(connection, baggage, given_input, write or _write, terminal=terminal).wait()
        if exit_ is None:
            error = connection.failure()
            again = "; give the command again: it submits nothing twice" if submission else ""
            raise BackendError(f"{error}{again}")
        for run in exit_["runs"]:
            remember(run, cluster.name)
        if exit_["code"] == EXIT_INTERRUPTED and arguments[0] == "submit" and exit_["runs"]:
            submitted = " ".join(exit_["runs"])
            sys.stderr.write(f"\nsubmitted before the interruption: {submitted}; `ropewalk cancel {submitted}` ends it\n")
        return int(exit_["code"])
    finally:
        connection.close()


def _request(
    cluster: Profile, profile: SlurmProfile, arguments: Sequence[str], baggage: Baggage | None, submission: str | None
) -> dict[str, Any]:
    profiles = {cluster.name: {"backend": cluster.backend, **{k: v for k, v in cluster.options.items() if k not in OWN_KEYS}}}
    name = hashlib.sha256(json.dumps(profiles, sort_keys=True, default=str).encode()).hexdigest()[:16]
    size = shutil.get_terminal_size()
    colors = {"FORCE_COLOR": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)} if sys.stdout.isatty() else {}
    request: dict[str, Any] = {
        "start": {
            "root": profile.runs,
            "program": program_tree().digest,
            "setup": list(profile.setup),
            "python": (profile.python if profile.container is None else None) or "python3",
        },
        "arguments": list(arguments),
        "host": profile.host,
        "cluster": cluster.name,
        "profiles": profiles,
        "profiles_name": name,
        "environment": colors,
    }
    if baggage is not None:
        request |= {
            "trees": [program_tree().digest, *(tree.digest for tree in baggage.trees)],
            "files": baggage.entries(),
            "directory": os.getcwd().lstrip("/"),
        }
    if submission is not None:
        origin = {"submission": submission, "command": ["ropewalk", *arguments], "code": None, "project": None}
        request["origin"] = origin | ({"code": baggage.code, "project": baggage.project} if baggage is not None else {})
    return request


class _Answers:
    """The frames of the login node's side: needs, output, and the end."""

    def __init__(
        self,
        connection: Connection,
        baggage: Baggage | None,
        given_input: bytes | None,
        write: Callable[[Kind, bytes], None],
        *,
        terminal: bool,
    ) -> None:
        self._terminal, self._restore = terminal, contextlib.ExitStack()
        self._frames, self._baggage, self._given_input = connection.frames, baggage or Baggage(), given_input
        self._show_messages, self._write_output = connection.show_messages, write

    def wait(self) -> dict[str, Any] | None:
        """Answer and pass on until the command has ended; return None if the connection ended before."""
        interrupted = False

        def interrupt(*_: object) -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
            threading.Thread(target=self._interrupt, daemon=True).start()  # this thread may be sending

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            while True:
                kind, content = self._frames.receive()
                self._show_messages()
                if kind is Kind.EXIT:
                    return dict(json.loads(content))
                if kind is Kind.NEED:
                    self._provide(json.loads(content))
                elif kind in (Kind.OUT, Kind.ERR):
                    self._write_output(kind, content)
                elif kind is Kind.FILE:
                    self._take_file(json.loads(content))
        except ConnectionEndedError:
            if interrupted:
                raise KeyboardInterrupt from None
            return None
        finally:
            signal.signal(signal.SIGINT, before)
            self._restore.close()

    def _take_file(self, header: dict[str, Any]) -> None:
        """Write a file that the command wrote, at the same path below the current directory."""
        target = Path(header["path"])
        if target.is_absolute() or ".." in target.parts:
            raise BackendError(f"the login node sent {header['path']!r}, which is not below the current directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        expand = zlib.decompressobj()
        _note(f"receiving {target} ...")
        try:
            with temporary.open("wb") as stream:
                while part := self._frames.receive_content():
                    stream.write(expand.decompress(part))
                stream.write(expand.flush())
            temporary.chmod(header["mode"])
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # what has arrived before the connection broke
            _note("")

    def _interrupt(self) -> None:
        with contextlib.suppress(ConnectionEndedError):
            self._frames.send(Kind.INTERRUPT)

    def _provide(self, need: dict[str, Any]) -> None:
        if need.get("input"):  # earlier the bootstrap would read it
            if self._terminal:
                self._restore.enter_context(_raw_terminal(self._frames))
            threading.Thread(target=_pass_input, args=[self._frames, self._given_input], daemon=True).start()
        if need.get("program"):
            _note("installing this version of Ropewalk there ...")
            archive = _archive(program_tree())
            self._frames.send(Kind.PROGRAM, hashlib.sha256(archive).hexdigest().encode() + archive)
            _note("")
        if digests := need.get("trees"):
            trees = {tree.digest: tree.entries for tree in (program_tree(), *self._baggage.trees)}
            self._frames.send(Kind.ENTRIES, {digest: trees[digest] for digest in digests})
        contents = need.get("contents", ())
        for number, digest in enumerate(contents, 1):
            _note(f"sending file {number} of {len(contents)} ...")
            self._frames.send_content(io.BytesIO(self._baggage.content(digest)))
        if contents:
            _note("")


def _note(message: str) -> None:
    """Write to a terminal what goes on, in place of the note before; an empty one removes it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{message}\x1b[K\r")
        sys.stderr.flush()


def _archive(tree: LocalTree) -> bytes:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
            for name, path in tree.files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as stream:
                    tar.addfile(member, stream)
        return buffer.getvalue()


def _write(kind: Kind, content: bytes) -> None:
    stream = sys.stdout.buffer if kind is Kind.OUT else sys.stderr.buffer
    stream.write(content)
    stream.flush()


@contextlib.contextmanager
def _raw_terminal(frames: Frames) -> Iterator[None]:
    """Leave keys such as Ctrl-C to the command during the block, and pass on changes of the terminal's size."""

    def send_size() -> None:
        with contextlib.suppress(ConnectionEndedError):
            frames.send(Kind.SIZE, list(termios.tcgetwinsize(0)))

    settings = termios.tcgetattr(0)
    before = signal.signal(signal.SIGWINCH, lambda *_: threading.Thread(target=send_size, daemon=True).start())
    tty.setraw(0, termios.TCSADRAIN)  # what is typed already is the command's too
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, settings)
        signal.signal(signal.SIGWINCH, before)


def _pass_input(frames: Frames, prepared: bytes | None) -> None:
    """Send this process's standard input until it ends, or the given content instead."""
    with contextlib.suppress(ConnectionEndedError, ValueError):
        if prepared is not None:
            frames.send(Kind.INPUT, prepared)
        while prepared is None and (content := os.read(0, CHUNK_BYTES)):
            frames.send(Kind.INPUT, content)
        frames.send(Kind.INPUT)


def _terminal() -> bool:
    """Return True if ssh can ask somebody for a password."""
    return sys.stdin.isatty() and sys.stderr.isatty()
