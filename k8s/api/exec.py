"""A command in a pod: the channels of an exec, over a WebSocket that is read by the thread that uses it.

httpx2's own WebSocket reads in a thread that may still be reading when the connection is closed: it then takes the first bytes
that come to whichever file has since got the connection's number, another connection or a program's output.
"""

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import httpcore2
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from ropewalk.k8s.api.exec_stdin import READY

if TYPE_CHECKING:
    from httpcore2 import NetworkStream

SWITCHED = 101  # the status of an answer that agrees to the upgrade
PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, END = 0, 1, 2, 3  # channels of an exec
CLOSE_STDIN = bytes((255, STDIN))
CHUNK_BYTES = 128 << 10
SILENCE_SECONDS = 20.0  # then the other end is asked whether it is still there, and given up after as long again
FED_SECONDS = 300.0  # how long a command that is given input may say nothing


class BrokenOffError(Exception):
    """The connection broke, or the other end does not answer."""


def upgrade_headers() -> dict[str, str]:
    """The headers of a GET that asks for the WebSocket of an exec."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Protocol": PROTOCOL,
    }


def run_command(stream: "NetworkStream", stdin: BinaryIO | None, stdout: BinaryIO | None) -> tuple[dict[str, Any], str]:
    """Pass a command's input and output through an upgraded connection; return its status and what it printed on stderr.

    Raises BrokenOffError where the connection ends before the command has.
    """
    socket, said, unfed = WebSocket(stream), bytearray(), stdin
    for message in socket.messages(FED_SECONDS if stdin is not None else None):
        channel, content = message[0], message[1:]
        if channel == END:
            socket.say_goodbye()
            return json.loads(content), " ".join(said.decode(errors="replace").split())
        if channel == STDOUT and content and unfed is not None:  # the API server begins with an empty message
            content = content.removeprefix(READY)
            with suppress(BrokenOffError):  # what the command says of its end is still to come
                _feed(socket, unfed)
            unfed = None
        if channel == STDOUT and stdout is not None:
            stdout.write(content)
        elif channel == STDERR:
            said += content
    raise BrokenOffError("closed before the end")


def _feed(socket: "WebSocket", stdin: BinaryIO) -> None:
    while chunk := stdin.read(CHUNK_BYTES):
        socket.send(bytes((STDIN,)) + chunk)
    socket.send(CLOSE_STDIN)


class WebSocket:
    """An upgraded connection. The caller closes it."""

    def __init__(self, stream: "NetworkStream") -> None:
        self._stream = stream
        self._state = Connection(ConnectionType.CLIENT)

    def send(self, data: bytes) -> None:
        """Send one binary message. Raises BrokenOffError."""
        self._write(BytesMessage(data))

    def messages(self, patience: float | None = None) -> Iterator[bytes]:
        """Yield binary messages, each whole, until the other end closes. Raises BrokenOffError, also where none comes in time."""
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
                raise BrokenOffError(f"nothing came for {patience:.0f} s")

    def say_goodbye(self) -> None:
        """Tell the other end that nobody listens any more."""
        with suppress(BrokenOffError):
            self._write(CloseConnection(code=1000))

    def _write(self, event: Event) -> None:
        with _broken_off():
            self._stream.write(self._state.send(event), timeout=SILENCE_SECONDS)

    def _read(self) -> bytes:
        """Read what has come; nothing at the end of the connection."""
        with _broken_off():
            try:
                return self._stream.read(CHUNK_BYTES, timeout=SILENCE_SECONDS)
            except httpcore2.ReadTimeout:
                self._write(Ping())
            return self._stream.read(CHUNK_BYTES, timeout=SILENCE_SECONDS)


@contextmanager
def _broken_off() -> Iterator[None]:
    try:
        yield
    except LocalProtocolError:  # its message holds all that was to be sent
        raise BrokenOffError("closed before all was sent") from None
    except (RemoteProtocolError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise BrokenOffError(str(error) or type(error).__name__) from None
