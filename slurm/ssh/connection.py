"""A connection to a login node: the user's own ssh, which starts the helper there."""

import base64
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm.ssh.frames import CHUNK_BYTES, MAGIC, ConnectionEndedError, Frames, Kind

ALIVE_SECONDS = 15.0
ENDING_SECONDS = 5.0
MOST_MESSAGE_BYTES = 1 << 16  # that are kept for an error message
# ssh ends after a minute without an answer, such as when the laptop has changed its network; else TCP takes a quarter of an hour
NOTICE_ABSENCE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
SSH_FAILED = 255  # exit code of ssh for errors of its own
BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
# a login shell, so that a job is submitted with the environment that the user has on the login node
LOGIN = 'if command -v bash >/dev/null 2>&1; then exec bash -lc "$0"; fi; exec sh -lc "$0"'


def remote_command() -> str:
    """Return the command line that starts the bootstrap, for any login shell."""
    text = base64.b64encode(zlib.compress(BOOTSTRAP.read_bytes(), 9)).decode()
    program = f'exec python3 -c "import base64,zlib;exec(zlib.decompress(base64.b64decode(b\\"{text}\\")))"'
    return f"exec sh -c {shlex.quote(LOGIN)} {shlex.quote(program)}"


def _notice_absence(configuration: Sequence[str]) -> Sequence[str]:
    """Return options for a user whose configuration has none. `configuration`: the command that prints it."""
    try:
        printed = subprocess.run(configuration, capture_output=True, text=True, check=False).stdout
    except OSError:  # the caller reports it
        printed = ""
    return () if re.search("^serveraliveinterval [1-9]", printed, re.MULTILINE) else NOTICE_ABSENCE


class Connection:
    """An ssh process and the frames to its helper."""

    def __init__(self, name: str, host: str, ssh: Sequence[str], *, terminal: bool) -> None:
        """Start ssh. `terminal`: somebody is there who can answer its questions."""
        self.name, self.host, self._terminal = name, host, terminal
        self._log_in = f"`{shlex.join([*ssh, host])}`"
        options = ["-T", *_notice_absence([*ssh, "-G", "--", host]), *([] if terminal else ["-o", "BatchMode=yes"])]
        command = [*ssh, *options, "--", host, remote_command()]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # ssh inherits it: Ctrl-C is for the command on the login node
        try:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        except OSError as error:
            raise BackendError(f"cluster {name!r}: {ssh[0]}: {error.strerror}; install it, or correct the key `ssh`") from error
        finally:
            signal.signal(signal.SIGINT, before)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.frames = Frames(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.started = threading.Event()  # the helper's side answered
        self._messages, self._messages_lock = b"", threading.Lock()
        self._are_shown, self._last_line = False, b""  # messages; the one that an error would contain
        self._reader = threading.Thread(target=self._read_messages, daemon=True)
        self._reader.start()

    def greet(self) -> None:
        """Skip what login scripts print, until the bootstrap answers. Raises BackendError if it does not."""
        window = b""
        try:
            while not window.endswith(MAGIC):
                window = window[-len(MAGIC) :] + self.frames.read(1)
        except ConnectionEndedError:
            raise self.failure() from None
        self.started.set()
        threading.Thread(target=self._stay_alive, daemon=True).start()

    def failure(self) -> BackendError:
        """Return the error for a connection that has ended without an answer."""
        code = self._wait()
        self._reader.join(ENDING_SECONDS)
        self._last_line = b""
        lines = [line.strip() for line in self._messages.decode(errors="replace").splitlines()]
        reason = next((line.rstrip(".") for line in reversed(lines) if line), "the connection was closed")
        return BackendError(f"cluster {self.name!r}: {self.host}: {reason}{self._remedy(code, ' '.join(lines))}")

    def _remedy(self, code: int, messages: str) -> str:
        if "ermission denied" in messages and not self._terminal and code == SSH_FAILED:
            return (
                "; without a terminal ssh cannot ask for a password or code: use a key (ssh-add), or open a shared connection"
                f" first (ControlMaster in the ssh configuration, then {self._log_in})"
            )
        if "IDENTIFICATION HAS CHANGED" in messages:
            return f"; its key differs from the known one: if you trust the new one, remove the old one as {self._log_in} says"
        if "Host key verification failed" in messages:
            return f"; run {self._log_in} once at a terminal to accept its key"
        if "No space left" in messages or "quota exceeded" in messages:
            return "; make space there, or name another directory by `runs` in the profile"
        if "[Errno " in messages:
            return "; `runs` in the profile must be a directory there in which you may write"
        if "python3" in messages and "not found" in messages:
            return "; put python3 on the PATH of login shells there"
        if "lacks what Ropewalk needs" in messages or "needs 3.11" in messages:
            return "; name a Python with Ropewalk's packages by `python` in the profile, or load one by `setup`"
        if "ropewalk: line " in messages:  # of the shell that runs the lines of `setup` and starts Python
            return "; correct `setup` or `python` in the profile"
        if self.started.is_set():
            return ""
        return f"; does {self._log_in} work?" if code == SSH_FAILED else "; do its login scripts, such as ~/.bash_profile, exit?"

    def show_messages(self) -> None:
        """Show all that has arrived on the standard error: the connection has not failed of it."""
        self._take_messages()
        with self._messages_lock:
            if self._are_shown:
                sys.stderr.buffer.write(self._last_line)
                sys.stderr.flush()
                self._last_line = self._messages = b""

    def close(self) -> None:
        """End the session, without waiting for ssh: it takes a round trip, or longer if other sessions share its connection."""
        self.show_messages()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read_messages(self) -> None:
        """Keep what ssh and the login node write beside the frames."""
        assert self._process.stderr is not None
        while select.select([self._process.stderr], [], []) and self._take_messages():
            pass

    def _take_messages(self) -> bool:
        """Keep what has arrived, and show what follows the bootstrap's mark: what `setup` prints, not login scripts.

        Return False at the end.
        """
        assert self._process.stderr is not None
        with self._messages_lock:  # the process may exit with this thread in the middle of a line
            while select.select([self._process.stderr], [], [], 0)[0]:
                if not (content := self._process.stderr.read(CHUNK_BYTES)):
                    return False
                self._messages = (self._messages + content)[-MOST_MESSAGE_BYTES:]
                if not self._are_shown:
                    before, mark, content = self._messages.partition(MAGIC)
                    self._are_shown, self._messages = bool(mark), before + content
                if self._are_shown:
                    content = self._last_line + content
                    end = content.rstrip().rfind(b"\n") + 1
                    self._last_line = content[end:]
                    sys.stderr.buffer.write(content[:end])
                    sys.stderr.flush()
        return True

    def _stay_alive(self) -> None:
        ended = threading.Event()
        try:
            while not ended.wait(ALIVE_SECONDS):
                self.frames.send(Kind.ALIVE)
        except (ConnectionEndedError, ValueError):
            pass
