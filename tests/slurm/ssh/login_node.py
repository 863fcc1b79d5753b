"""A login node: a real sshd of this user's own on a loopback port, with a key, a configuration for ssh, and a relay before it."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from tests.patience import Patience, until

# the command, which says at its end which modules it has imported that a client does without
CLIENT = """
import sys
from ropewalk.jobs.cli import __main__ as cli
heavy = {"torch", "ray", "transformers", "numpy", "pyarrow", "psutil", "numba", "spwd", "ropewalk.slurm.commands"}
try:
    cli.main()
finally:
    if heavy & {*sys.modules}:
        print("HEAVY", sorted(heavy & {*sys.modules}), file=sys.stderr)
"""
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ROOT = Path(__file__).resolve().parents[3]


def need_sshd() -> str:
    """Skip, with the remedy, where there is no sshd."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh: apt-get install openssh-server openssh-client")
    return SSHD


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


# takes each code of a file once; PAM gives it what the user has typed
CHECK_CODE = """#!/bin/sh
read -r code
grep -qx "$code" {codes} && sed -i "/^$code\\$/d" {codes}
"""
PAM = """auth required pam_exec.so expose_authtok quiet {folder}/check-code
auth required pam_permit.so
account required pam_permit.so
session required pam_permit.so
"""
MOUNT_PAM = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/pam.d/sshd && exec "$@"')  # for this sshd alone


class LoginNode:
    """An sshd whose users have the environment of the Slurm lab, and a home of their own."""

    def __init__(self, folder: Path, environment: Mapping[str, str], codes: Sequence[str] = ()) -> None:
        """`codes`: one-time codes, which it asks for in place of a key; needs root."""
        self.folder, self.port = folder, free_port()
        self.home, self.runs = folder / "home", folder / "runs"
        self.home.mkdir()
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        variables = {"HOME": str(self.home), **environment}
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized",
            f"PidFile {folder}/sshd.pid",
            "StrictModes no",
            "PasswordAuthentication no",
            f"UsePAM {'yes' if codes else 'no'}",
            f"KbdInteractiveAuthentication {'yes' if codes else 'no'}",
            f"PubkeyAuthentication {'no' if codes else 'yes'}",
            "PermitRootLogin yes",
            f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}",
        ]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.write_config(self.port)
        self.codes = folder / "codes"
        if codes:
            self.codes.write_text("".join(f"{code}\n" for code in codes))
            (folder / "pam").write_text(PAM.format(folder=folder))
            (folder / "check-code").write_text(CHECK_CODE.format(codes=self.codes))
            (folder / "check-code").chmod(0o755)
        self._wrapper = [*MOUNT_PAM, str(folder / "pam")] if codes else []
        if not os.geteuid():
            Path("/run/sshd").mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start sshd."""
        command = [*self._wrapper, need_sshd(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers, Patience.START)

    def down(self) -> None:
        """End sshd and its connections."""
        if self._process is not None:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its parent
                    process.terminate()
            self._process.terminate()
            self._process.wait()

    def helpers(self) -> list[str]:
        """Return the processes that run a helper or its command."""
        commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
        return [command for command in commands if "ropewalk.slurm.ssh.helper" in command and str(self.runs) in command]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def write_config(self, port: int, *, address: str = "127.0.0.1", key: bool = True, shared: bool = False) -> None:
        """Write the user's ssh configuration: the host through a port, with or without a key, and a shared connection."""
        lines = [
            "Host login.big",
            f"HostName {address}",
            f"Port {port}",
            f"User {getpass.getuser()}",
            "IdentitiesOnly yes",
            f"IdentityFile {self.folder}/{'user' if key else 'none'}",
            f"UserKnownHostsFile {self.folder}/known_hosts",
            "StrictHostKeyChecking accept-new",
            "LogLevel ERROR",
            *(["ControlMaster auto", f"ControlPath {self.folder}/shared", "ControlPersist 60"] if shared else []),
        ]
        (self.folder / "ssh_config").write_text("\n".join(lines) + "\n")

    def profile(self, **more: object) -> dict[str, object]:
        """The profile of the cluster behind this login node."""
        ssh = ["ssh", "-F", str(self.folder / "ssh_config")]
        there = {"backend": "slurm", "runs": str(self.runs), "python": sys.executable, **more}
        return {**there, "host": "login.big", "ssh": ssh}


class Laptop:
    """The user's machine: a home, a project, and the command, which imports nothing heavy."""

    def __init__(self, folder: Path, node: LoginNode, **profile: object) -> None:
        self.node, self.folder = node, folder
        self.project = folder / "project"
        self.project.mkdir(parents=True)
        (folder / "clusters.yaml").write_text(yaml.safe_dump({"big": node.profile(**profile)}))
        (folder / "there.yaml").write_text(
            yaml.safe_dump({"big": {k: v for k, v in node.profile(**profile).items() if k not in {"host", "ssh"}}})
        )
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "ROPEWALK", "XDG"))}
        self.environment = {
            **plain,
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT / "src"),
            "ROPEWALK_CLUSTERS": str(folder / "clusters.yaml"),
        }
        self.environment_there = {
            "HOME": str(node.home),
            "PYTHONPATH": str(ROOT / "src"),
            "ROPEWALK_CLUSTERS": str(folder / "there.yaml"),
            "ROPEWALK_RUNS": str(node.runs),
        }

    command: tuple[str, ...] = (sys.executable, "-c", CLIENT)

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start the command on the laptop."""
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.project,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, code: int | None = 0, text: str | None = None) -> str:
        """Run the command on the laptop with a text as its input, and return its output."""
        process = self.start(*arguments, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE)
        self.out, self.err = process.communicate(text)
        self.code = process.returncode
        assert "HEAVY" not in self.err, f"{self.out}\n{self.err}"
        assert code is None or self.code == code, f"{self.out}\n{self.err}"
        return self.out

    def there(self, *arguments: str, code: int | None = 0, text: str = "") -> str:
        """Run the command on the login node itself, and return its output."""
        environment = {**os.environ, **self.environment_there}
        command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments]
        done = subprocess.run(
            command, cwd=self.node.home, env=environment, input=text, capture_output=True, text=True, check=False
        )
        self.err_there, self.code_there = done.stderr, done.returncode
        assert code is None or done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout


class Relay:
    """A port before a login node that delays every byte, and cuts a connection after a number of bytes."""

    def __init__(self, port: int, delay_seconds: float = 0.0, address: str = "127.0.0.1") -> None:
        self.cut_after: int | None = None  # bytes of both directions together
        self.delay_seconds, self.turns, self.bytes = delay_seconds, 0, 0
        self.used_at = time.monotonic()
        self._target = port
        self._listening = socket.create_server((address, 0))
        self.port = int(self._listening.getsockname()[1])
        self._last: object = None
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                for end in (here, there):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.bytes, self.turns, self._last = 0, 0, None
                for source, target in ((here, there), (there, here)):
                    _Direction(self, source, target, upward=source is here)

    def count(self, size: int, *, upward: bool) -> int:
        """Return how many of the bytes may pass; an answer to what went upward is a turn."""
        with self._lock:
            self.used_at = time.monotonic()
            if not upward and self._last is True:
                self.turns += 1
            self._last = upward
            allowed = size if self.cut_after is None else max(0, min(size, self.cut_after - self.bytes))
            self.bytes += allowed
            return allowed


class _Direction:
    """One direction of a connection: a thread that reads, and one that writes after the delay."""

    def __init__(self, relay: Relay, source: socket.socket, target: socket.socket, *, upward: bool) -> None:
        self._relay, self._source, self._target, self._upward = relay, source, target, upward
        self._queue: list[tuple[float, bytes]] = []
        self._changed = threading.Condition()
        for step in (self._read, self._write):
            threading.Thread(target=step, daemon=True).start()

    def _read(self) -> None:
        data = b"x"
        while data:
            try:
                data = self._source.recv(1 << 16)
            except OSError:
                data = b""
            allowed = self._relay.count(len(data), upward=self._upward)
            parts = [data[:allowed], *([b""] if allowed < len(data) else [])]
            with self._changed:
                self._queue += [(time.monotonic() + self._relay.delay_seconds, part) for part in parts]
                self._changed.notify()
            data = parts[-1]

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue)
                    when, data = self._queue.pop(0)
                time.sleep(max(0.0, when - time.monotonic()))
                if not data:
                    break
                self._target.sendall(data)
        for end in (self._source, self._target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def login_node(folder: Path, environment: Mapping[str, str], codes: Sequence[str] = ()) -> Iterator[LoginNode]:
    """Run a login node during the block."""
    need_sshd()
    node = LoginNode(folder, environment, codes)
    node.up()
    try:
        yield node
    finally:
        node.down()
