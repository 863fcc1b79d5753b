"""The gateways of an endpoint, as their parent sees them: one serves, a second one takes over when the first is gone."""

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import EXIT_USER_MISTAKE, ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.serving.serve.child import Child

log = logging.getLogger(__name__)

BACKLOG = 4096
RECEIVE_BYTES = 2**16  # of a body that is not read yet, held by the kernel and parsed at once
SILENT_LOOKS = 300  # calls of `look` without a sign of life after which the serving gateway is killed


class Gateways:
    """Two processes and the socket that both may accept connections from. Connections wait in it while none does."""

    def __init__(self, listening: socket.socket, settings: Path, log_file: Path, environment: Mapping[str, str]) -> None:
        self.socket, self._lock = listening, settings.with_name("gateway.lock")
        self._lock.write_bytes(b" " * 20)  # room for a pid, also when the disk is full
        command = module_command("ropewalk.jobs.serving.serve.gateway", str(settings), "--listen", str(listening.fileno()))
        command += ["--lock", str(self._lock), "--parent", str(os.getpid())]
        self._children = [Child("gateway", command, log_file, environment, pass_fds=[listening.fileno()]) for _ in range(2)]
        self._last_beat, self._silent_looks = 0, 0

    @property
    def pids(self) -> list[int]:
        """PIDs of both gateways."""
        return [child.process.pid for child in self._children]

    @property
    def serving_pid(self) -> int | None:
        """PID of the gateway that serves, or None before the first one does."""
        return int(self._lock.read_bytes().strip() or 0) or None

    def look(self) -> list[int]:
        """Restart gateways that have ended, and return their exit codes. Call this ten times a second.

        Raises ConfigError for a mistake in the settings, RuntimeError if they end too often.
        """
        codes = []
        for child in self._children:
            if (code := child.restart_if_ended()) is not None:
                if code == EXIT_USER_MISTAKE:
                    raise ConfigError(child.last_log_line().removeprefix("error: "))
                codes.append(code)
        self._kill_if_silent()
        return codes

    def _kill_if_silent(self) -> None:
        """Kill the serving gateway if its event loop stands still. Looks are counted, since the whole machine may stand still."""
        beat = self._lock.stat().st_mtime_ns
        self._silent_looks = 0 if beat != self._last_beat else self._silent_looks + 1
        self._last_beat = beat
        if self._silent_looks > SILENT_LOOKS and (pid := self.serving_pid) in self.pids:
            log.warning("gateway %s does not respond and is killed", pid)
            self._silent_looks = 0
            os.kill(pid, signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """Let the serving gateway finish what is open for `seconds`, then kill it."""
        serving = self.serving_pid
        for child in sorted(self._children, key=lambda child: child.process.pid == serving):  # the other must not take over
            child.end(seconds if child.process.pid == serving else 0.0)
        self.socket.close()


def listen(host: str, port: int, last_port: int = 0) -> socket.socket:
    """Return a listening socket; without a `port` at `last_port` if that is free. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = None
    if not port and last_port:
        with suppress(OSError):
            listening = socket.create_server((host, last_port), family=family, backlog=BACKLOG)
    try:
        listening = listening or socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else error
        raise ConfigError(f"host {host}, port {port}: {reason}; choose another, or port=0 for a free one") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return listening


def address_of(listening: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a listening socket, as programs on this machine reach it."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
