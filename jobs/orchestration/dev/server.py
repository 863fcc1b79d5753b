"""ssh sessions on a node without an open port: an sshd for each connection to a socket that only this user may use.

The socket is an abstract one, which containers of a node share. Both ends check that the other belongs to the same user.
"""

import contextlib
import hashlib
import itertools
import os
import pwd
import secrets
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.kill import end, processes_with, variable_of

SERVER_VARIABLE = "ROPEWALK_DEV"  # marks all processes of a server
CONNECTION_VARIABLE = "ROPEWALK_CONNECTION"  # marks all processes of a connection
SESSION_VARIABLE = "ROPEWALK_SESSION"  # process session of an ssh session; tmux, screen and editors' servers leave it
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
SFTP_SERVERS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/libexec", "/usr/lib/ssh", "/usr/lib/misc")


def socket_name(run: str, attempt: int) -> str:
    """Return the name of the socket of an attempt on its node."""
    return f"\0ropewalk-{hashlib.sha256(f'{run}/{attempt}'.encode()).hexdigest()[:32]}"


def is_own(connection: socket.socket) -> bool:
    """Return True if the other end of a Unix socket belongs to this user."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


class SessionServer:
    """Starts an sshd for each connection; its sessions have given variables and start in a folder."""

    def __init__(self, name: str, key: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Listen. Raises ConfigError, with the remedy, where there is no sshd or the user has no entry in the list of users."""
        sshd, user = _requirements()
        self._mark, self._running = secrets.token_hex(8), set[subprocess.Popen[bytes]]()
        # sessions read its environment: sshd passes on none, and a file would hold the run's secrets
        self._holder = subprocess.Popen(["sleep", "infinity"], env={**environment, SERVER_VARIABLE: self._mark})
        self._home = Path(tempfile.mkdtemp(prefix="ropewalk-dev-"))
        self._configure(key, user, folder)
        self._sshd = [sshd, "-i", "-e", "-f", str(self._home / "config")]
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(name)
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all sessions with everything that they have started."""
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections; closing does not
        self._listening.close()
        for sshd in self._running.copy():
            sshd.kill()
        end(processes_with({SERVER_VARIABLE: self._mark}))
        self._holder.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _configure(self, key: str, user: str, folder: Path) -> None:
        """Write sshd's files, with a host key of this attempt."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._home / "host")], check=True)
        (self._home / "authorized").write_text(f"{key}\n")
        sftp = next((path for home in SFTP_SERVERS if os.access(path := f"{home}/sftp-server", os.X_OK)), None)
        session = [sys.executable, "-I", str(Path(__file__).with_name("session.py")), str(self._holder.pid), str(folder)]
        lines = [
            f"HostKey {self._home}/host",
            f"AuthorizedKeysFile {self._home}/authorized",
            f"AllowUsers {user}",
            f"ForceCommand {shlex.join(session)}",
            *([f"Subsystem sftp {sftp}"] if sftp else []),
            "StrictModes no",  # the folder is private
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PidFile none",
            "PrintMotd no",
            "AcceptEnv LANG LC_*",
            "ClientAliveInterval 15",  # a laptop that sleeps
            "ClientAliveCountMax 4",
            "LogLevel ERROR",
        ]
        (self._home / "config").write_text("\n".join(lines) + "\n")
        if not os.geteuid():
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd of root wants it

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            for number in itertools.count(1):
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=[connection, f"{self._mark}.{number}"], daemon=True).start()

    def _serve(self, connection: socket.socket, mark: str) -> None:
        with connection:
            if is_own(connection):
                command = [*self._sshd, "-o", f"SetEnv {CONNECTION_VARIABLE}={mark}"]
                sshd = subprocess.Popen(command, stdin=connection.fileno(), stdout=connection.fileno())
                self._running.add(sshd)
                sshd.wait()
                self._running.discard(sshd)
        end(process for process in processes_with({CONNECTION_VARIABLE: mark}) if _in_session(process))


def _requirements() -> tuple[str, str]:
    """Return sshd and the name of this user. Raises ConfigError, with the remedy."""
    sshd = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), SBIN)))
    if sshd is None or shutil.which("ssh-keygen") is None:
        raise ConfigError("dev: this node has no sshd; install openssh-server there, or in the container's image")
    try:
        return sshd, pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        remedy = "add one to the container's image (useradd)"
        raise ConfigError(f"dev: sshd needs an entry for user {os.geteuid()} in /etc/passwd; {remedy}") from None


def _in_session(process: psutil.Process) -> bool:
    try:
        return variable_of(process, SESSION_VARIABLE) in (None, str(os.getsid(process.pid)))
    except OSError:  # it has just ended
        return False
