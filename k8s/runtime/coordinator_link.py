"""A pod's connection to the coordinator of the run. It never waits for the other side, except to connect."""

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
    """A connection. `lost` says why it is of no use any more; `silent_seconds` that nobody closed it, but sent nothing.

    It is `answered` once the other side has let this pod in, and proved that it knows the term's key.
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
    def connect(cls, term: LeaderTerm, pod: Pod, key: str, *, known: bool = False) -> "CoordinatorLink":
        """Connect to a coordinator that was heard before (`known`), or to one that may be only starting.

        Raises OSError; ConnectionRefusedError where the pod lives, and no coordinator runs in it.
        """
        connection = socket.create_connection((term.address, term.port), timeout=CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connection, pod, term, key, LOST_SECONDS if known else COORDINATOR_START_SECONDS)

    def send(self, message: Message) -> None:
        """Send a message. Messages are far smaller than what a socket holds, so this waits only for a dead peer, and not long."""
        try:
            self._socket.sendall(pack(message))
        except OSError as error:
            self._lose(f"{type(error).__name__}: {error}")

    def listen(self, seconds: float) -> list[Message]:
        """Return what comes within some seconds, at the first message. Sends heartbeats, and notices when the other side is gone.

        Time in which this process was kept from listening, by a machine that stood still, does not count as silence.
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
            self._lose("the other side has closed it")
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        if lines:
            self._heard = time.monotonic()
        try:
            messages = [message for line in lines if not self._greet(message := unpack(bytes(line)))]
        except (ValueError, KeyError) as error:
            self._lose(f"not what the coordinator of the run would send: {error}")
            return []
        if len(rest) > LONGEST_BYTES:
            self._lose(f"a line longer than {LONGEST_BYTES} bytes")
        return [message for message in messages if message != HEARTBEAT]

    def _greet(self, message: Message) -> bool:
        """Go through the handshake; True: the message was a part of it. Raises ValueError if it came before the end of it."""
        if self.answered:
            return False
        if message["say"] == "challenge":
            self.send(hello(self.key, str(message["nonce"]), self._nonce, self._pod))
        elif is_welcome(self.key, self._nonce, message):
            self._patience, self.answered = LOST_SECONDS, True
        else:
            raise ValueError(f"{message['say']!r} without a welcome that knows the run's key")
        return True

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.close()
