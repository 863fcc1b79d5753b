"""Gateways as the keeper sees them: a process at the other end of a channel, live or in reserve."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.serving.serve.gateway.sockets.channel import MOST_SOCKETS, Kind, Message, pair, receive, send

MODULE = "ropewalk.jobs.serving.serve.gateway.worker"


class Worker:
    """A gateway's process. It begins to serve when it is told to lead."""

    def __init__(self, settings: Path) -> None:
        self.channel, theirs = pair()
        self.channel.setblocking(False)
        with theirs:
            command = module_command(MODULE, str(settings), str(theirs.fileno()))
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.began = self.heard = time.monotonic()
        self.ready = False
        self._unsent: list[tuple[Kind, int, Sequence[int], Sequence[int]]] = []

    @property
    def behind(self) -> bool:
        """Whether messages wait until it reads."""
        return bool(self._unsent)

    def lead(self, journal: int, connections: Iterable[tuple[int, int]]) -> None:
        """Hand everything over: the journal, and (number, socket) of all connections."""
        known = list(connections)
        self._unsent.append((Kind.LEAD, len(known), (), (journal,)))
        self.add(known)
        self.heard = time.monotonic()

    def add(self, connections: Sequence[tuple[int, int]]) -> None:
        """Hand over connections that were accepted."""
        for at in range(0, len(connections), MOST_SOCKETS):
            part = connections[at : at + MOST_SOCKETS]
            self._unsent.append((Kind.CONNECTIONS, 0, [number for number, _ in part], [handle for _, handle in part]))
        self.flush()

    def leave(self) -> None:
        """Tell it to end what is open and exit."""
        self._unsent.append((Kind.LEAVE, 0, (), ()))
        self.flush()

    def flush(self) -> None:
        """Send what it has room for."""
        while self._unsent:
            try:
                send(self.channel, *self._unsent[0])
            except BlockingIOError:
                return
            except OSError:  # it is gone; its channel's end of file says so
                self._unsent.clear()
                return
            del self._unsent[0]

    def messages(self) -> tuple[list[Message], bool]:
        """(What it has said, whether it is gone)."""
        found: list[Message] = []
        while True:
            try:
                message = receive(self.channel)
            except BlockingIOError:
                return found, False
            if message is None:
                return found, True
            self.heard = time.monotonic()
            self.ready = self.ready or message.kind is Kind.READY
            found.append(message)

    def end(self) -> None:
        """Make sure that it is gone: two gateways must never write to one connection."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.channel.close()


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the keeper dies: without it nobody holds the sockets."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def take_channel(descriptor: int) -> socket.socket:
    """The gateway's end of the channel, by the descriptor that it was started with."""
    channel = socket.socket(fileno=descriptor)
    channel.setblocking(False)
    return channel
