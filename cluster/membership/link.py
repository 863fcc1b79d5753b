"""An agent's connection to its coordinator: the socket, the clock and the signatures for `Contact`.

Only connecting waits for the other side; all else is non-blocking.
"""

import multiprocessing.connection
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ropewalk.cluster.membership.clock import RunningClock
from ropewalk.cluster.membership.contact import Contact, SessionEndedError
from ropewalk.cluster.membership.handshake import is_answer, new_nonce, sign_answer
from ropewalk.cluster.membership.protocol import LONGEST_BYTES, RETURN_SECONDS, SILENCE_SECONDS, Message, pack, unpack

CONNECT_SECONDS = 0.3
SEND_SECONDS = 1.0
CHUNK_BYTES = 4096


class Link:
    """A session with one coordinator.

    `lost` is the reason why the session has ended, else empty. `silent_seconds` is set if it ended by silence. `answered` is set
    once the coordinator has admitted this agent and proved that it has the key. A connection that breaks is replaced at once.
    """

    def __init__(
        self, host: str, port: int, key: str, *, introduction: Message, fence: tuple[int, int] = (0, 0), patience_seconds: float
    ) -> None:
        """Connect; a coordinator that was never heard may be silent for `patience_seconds`, since it may be starting.

        Raises OSError; ConnectionRefusedError means that the machine is alive but runs no coordinator.
        """
        self.key, self.clock = key, RunningClock()
        self._place, self._introduction, self._fence, self._patience = (host, port), introduction, fence, patience_seconds
        self._contact = Contact(new_nonce())
        self.lost = ""
        self.silent_seconds = 0.0
        self._connect(CONNECT_SECONDS)

    @property
    def answered(self) -> bool:
        return self._contact.begun

    def send(self, message: Message) -> None:
        """Send a message. Messages fit into the socket's buffer, so this blocks only for a dead peer, and not for long."""
        self._write(self._contact.send(message))

    def listen(self, seconds: float, others: Sequence[Any] = ()) -> list[Message]:
        """Return the messages that arrive within some seconds, as soon as there is one, or one of `others` is readable.

        Sends heartbeats, and detects silence.
        """
        readable = multiprocessing.connection.wait([self._socket, *others], max(0.0, seconds))
        messages = self._read() if self._socket in readable else []
        now = self.clock()
        limit = SILENCE_SECONDS if self._contact.connected else self._patience
        if (silent := self._contact.silent_seconds(now)) > limit and not self.lost:
            self.silent_seconds = silent
            self._lose(f"nothing heard for {limit:.0f} s")
        self._write(self._contact.beat(now))
        return messages

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()

    def _connect(self, seconds: float) -> None:
        self._socket = socket.create_connection(self._place, timeout=seconds)
        self._socket.settimeout(SEND_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received, self._nonce = bytearray(), new_nonce()
        self._hello = self._contact.hello(self._fence, self.clock())

    def _write(self, messages: Sequence[Message]) -> None:
        for message in messages:
            try:
                self._socket.sendall(pack(message))
            except OSError as error:
                return self._break(f"{type(error).__name__}: {error}")
        return None

    def _read(self) -> list[Message]:
        connection = self._socket
        try:
            chunk = connection.recv(CHUNK_BYTES)
        except OSError as error:
            self._break(f"{type(error).__name__}: {error}")
            return []
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        messages: list[Message] = []
        try:
            for line in lines:
                if self._socket is connection:
                    messages += self._take(unpack(bytes(line)))
        except (ValueError, KeyError) as error:
            self._lose(f"not a message of the run's coordinator: {error}")
            return messages
        except SessionEndedError:
            self._lose("the coordinator has ended the session")
            return messages
        if len(rest) > LONGEST_BYTES:
            self._lose(f"a line longer than {LONGEST_BYTES} bytes")
        elif not chunk and self._socket is connection:
            self._break("closed by the other side")
        return messages

    def _take(self, message: Message) -> list[Message]:
        """Process a message; return it unless it is one of the handshake or a heartbeat. Raises ValueError, SessionEndedError."""
        if self._contact.connected:
            received = self._contact.hear(message, self.clock())
            return [received] if received is not None else []
        if message["say"] == "challenge":
            hello = {**self._hello, **self._introduction, "nonce": self._nonce}
            self._write([sign_answer(self.key, str(message["nonce"]), hello)])
        elif is_answer(self.key, self._nonce, "welcome", message):
            self._write(self._contact.welcome(message, self.clock()))
        else:
            raise ValueError(f"{message['say']!r} before a welcome with the run's key")
        return []

    def _break(self, why: str) -> None:
        """Replace the connection if it was welcomed; otherwise the session is lost."""
        self.close()
        if self.lost or not self._contact.connected:
            return self._lose(why)
        try:
            return self._connect(RETURN_SECONDS)
        except OSError:
            return self._lose(why)

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        self.close()
