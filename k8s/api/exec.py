"""A WebSocket in the thread of whoever uses it.

httpx2's own reads in a thread that may still be reading when it closes the connection: it then takes away the beginning of
what comes to whichever file has got the number of the connection's since, another connection or a program's output.
"""

import secrets
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import httpcore2
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from httpcore2 import NetworkStream

READ_BYTES = 128 << 10
SILENCE_SECONDS = 20.0  # then it is asked whether it is still there, and given up after as long again


class BrokenOffError(Exception):
    """The connection broke, or the other end does not answer."""


def upgrade_headers(protocol: str) -> dict[str, str]:
    """The headers of a GET that asks for a WebSocket of this protocol."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Protocol": protocol,
    }


class WebSocket:
    """A connection that was upgraded; whoever made it closes it."""

    def __init__(self, stream: "NetworkStream") -> None:
        self._stream = stream
        self._state = Connection(ConnectionType.CLIENT)

    def send(self, data: bytes) -> None:
        """Send one binary message. Raises BrokenOffError."""
        self._write(BytesMessage(data))

    def messages(self, patience: float | None = None) -> Iterator[bytes]:
        """Binary messages until the other end closes, each whole. Raises BrokenOffError, also where none comes in time."""
        message = bytearray()
        last = time.monotonic()
        while data := self._read():
            with _broken_off():
                self._state.receive_data(data)
                events = list(self._state.events())
            for event in events:
                if isinstance(event, Ping):
                    self._write(event.response())
                elif isinstance(event, BytesMessage):
                    message += event.data
                    if event.message_finished:
                        yield bytes(message)
                        message.clear()
                    last = time.monotonic()
                elif isinstance(event, CloseConnection):
                    return
            if patience is not None and time.monotonic() - last > patience:
                raise BrokenOffError(f"nothing was said for {patience:.0f} s")

    def say_goodbye(self) -> None:
        """Tell the other end that nobody listens any more."""
        with suppress(BrokenOffError):
            self._write(CloseConnection(code=1000))

    def _write(self, event: Event) -> None:
        with _broken_off():
            self._stream.write(self._state.send(event), timeout=SILENCE_SECONDS)

    def _read(self) -> bytes:
        """What has come; empty at the end."""
        with _broken_off():
            try:
                return self._stream.read(READ_BYTES, timeout=SILENCE_SECONDS)
            except httpcore2.ReadTimeout:
                self._write(Ping())
            return self._stream.read(READ_BYTES, timeout=SILENCE_SECONDS)


@contextmanager
def _broken_off() -> Iterator[None]:
    try:
        yield
    except LocalProtocolError:  # its words hold all that was to be sent
        raise BrokenOffError("closed before all was sent") from None
    except (RemoteProtocolError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise BrokenOffError(str(error) or type(error).__name__) from None
