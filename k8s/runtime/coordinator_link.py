"""A pod's connection to the run's coordinator. Only connecting waits for the other side; all else is non-blocking."""

import select
import socket
import time
from contextlib import suppress

from ropewalk.k8s.runtime.handshake import hello, is_welcome, new_nonce
from ropewalk.k8s.runtime.leader_terms import LeaderTerm
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import HEARTBEAT, LONGEST_BYTES, Message, pack, unpack
from ropewalk.k8s.runtime.timings import CONNECT_SECONDS, COORDINATOR_START_SECONDS, HEARTBEAT_SECONDS, LOST_SECONDS

CHUNK_BYTES = 4096


class CoordinatorLink:
    """A connection to the coordinator.

    `lost` is the reason why the connection is unusable, else empty. `silent_seconds` is set if it was lost by silence.
    `answered` is set once the coordinator has admitted this pod and proved that it has the term's key.
    """

    def __init__(self, connection: socket.socket, pod: Pod, term: LeaderTerm, key: str, patience: float) -> None:
        self.term, self.key = term, key
        self._pod, self._nonce = pod, new_nonce()
        self._socket = connection
        self._received = bytearray()
        self._patience = patience
        self._heard = self._listened = time.monotonic()
        self._next_heartbeat = self._heard + HEARTBEAT_SECONDS
        self.lost = ""
        self.silent_seconds = 0.0
        self.answered = False

    @classmethod
    def connect(cls, term: LeaderTerm, pod: Pod, key: str, *, answered_before: bool = False) -> "CoordinatorLink":
        """Connect to a coordinator; one that never answered before gets more time, because it may still be starting.

        Raises OSError; ConnectionRefusedError means that the pod is alive but runs no coordinator.
        """
        connection = socket.create_connection((term.address, term.port), timeout=CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connection, pod, term, key, LOST_SECONDS if answered_before else COORDINATOR_START_SECONDS)

    def send(self, message: Message) -> None:
        """Send a message. Messages fit into the socket's buffer, so this blocks only for a dead peer, and not for long."""
        try:
            self._socket.sendall(pack(message))
        except OSError as error:
            self._lose(f"{type(error).__name__}: {error}")

    def listen(self, seconds: float) -> list[Message]:
        """Return the messages that arrive within some seconds, as soon as there is one; send heartbeats; detect silence.

        Time in which this process could not run, such as a suspended machine, does not count as silence.
        """
        messages: list[Message] = []
        readable, _, _ = select.select([self._socket], [], [], seconds)
        if readable:
            messages = self._read()
        now = time.monotonic()
        self._heard = min(now, self._heard + max(0.0, now - self._listened - max(seconds, HEARTBEAT_SECONDS)))
        self._listened = now
        if now >= self._next_heartbeat and self.answered:
            self._next_heartbeat = now + HEARTBEAT_SECONDS
            self.send(HEARTBEAT)
        if now - self._heard > self._patience and not self.lost:
            self.silent_seconds = now - self._heard
            self._lose(f"nothing heard for {self._patience:.0f} s")
        return messages

    def _read(self) -> list[Message]:
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            self._lose(f"{type(error).__name__}: {error}")
            return []
        if not chunk:
            self._lose("closed by the other side")
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        if lines:
            self._heard = time.monotonic()
        try:
            messages = [message for line in lines if not self._handshake(message := unpack(bytes(line)))]
        except (ValueError, KeyError) as error:
            self._lose(f"not a message of the run's coordinator: {error}")
            return []
        if len(rest) > LONGEST_BYTES:
            self._lose(f"a line longer than {LONGEST_BYTES} bytes")
        return [message for message in messages if message != HEARTBEAT]

    def _handshake(self, message: Message) -> bool:
        """Process a message of the handshake; return False after the handshake. Raises ValueError for any other message."""
        if self.answered:
            return False
        if message["say"] == "challenge":
            self.send(hello(self.key, str(message["nonce"]), self._nonce, self._pod))
        elif is_welcome(self.key, self._nonce, message):
            self._patience, self.answered = LOST_SECONDS, True
        else:
            raise ValueError(f"{message['say']!r} before a welcome with the run's key")
        return True

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()
