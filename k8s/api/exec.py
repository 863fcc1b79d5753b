"""Runs a command in a pod: the channels of an exec request, over a WebSocket that the calling thread reads.

httpx2's own WebSocket reads in a background thread, which may still be reading when the connection is closed. It then swallows
the first bytes of whatever file reuses the connection's file descriptor, such as another connection or a program's output.
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

SWITCHED = 101  # status of a response that accepts the upgrade
PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, END = 0, 1, 2, 3  # channels of an exec request
CLOSE_STDIN = bytes((255, STDIN))
CHUNK_BYTES = 128 << 10
SILENCE_SECONDS = 20.0  # then a ping is sent; after the same time without an answer the connection is given up
INPUT_SECONDS = 300.0  # a command that gets input must send something within this time


class ConnectionLostError(Exception):
    """The connection broke, or the other side does not answer."""


def upgrade_headers() -> dict[str, str]:
    """Return the headers of a GET that requests the WebSocket of an exec."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Protocol": PROTOCOL,
    }


def run_command(stream: "NetworkStream", stdin: BinaryIO | None, stdout: BinaryIO | None) -> tuple[dict[str, Any], str]:
    """Pass a command's input and output through a connection; return its status and stderr. Raises ConnectionLostError."""
    socket, errors, pending_input = WebSocket(stream), bytearray(), stdin
    for message in socket.messages(INPUT_SECONDS if stdin is not None else None):
        channel, content = message[0], message[1:]
        if channel == END:
            socket.close()
            return json.loads(content), " ".join(errors.decode(errors="replace").split())
        if channel == STDOUT and content and pending_input is not None:  # the API server begins with an empty message
            content = content.removeprefix(READY)
            with suppress(ConnectionLostError):  # the command's status is still to come
                _send_input(socket, pending_input)
            pending_input = None
        if channel == STDOUT and stdout is not None:
            stdout.write(content)
        elif channel == STDERR:
            errors += content
    raise ConnectionLostError("closed before the command ended")


def _send_input(socket: "WebSocket", stdin: BinaryIO) -> None:
    while chunk := stdin.read(CHUNK_BYTES):
        socket.send(bytes((STDIN,)) + chunk)
    socket.send(CLOSE_STDIN)


class WebSocket:
    """Messages over an upgraded connection; the caller closes the connection."""

    def __init__(self, stream: "NetworkStream") -> None:
        self._stream = stream
        self._state = Connection(ConnectionType.CLIENT)

    def send(self, data: bytes) -> None:
        """Send one binary message. Raises ConnectionLostError."""
        self._write(BytesMessage(data))

    def messages(self, patience: float | None = None) -> Iterator[bytes]:
        """Yield whole binary messages until the other side closes. Raises ConnectionLostError, also after `patience` seconds."""
        message = bytearray()
        last = time.monotonic()
        while data := self._read():
            with _translated():
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
                raise ConnectionLostError(f"no message for {patience:.0f} s")

    def close(self) -> None:
        """Tell the other side that nothing more is read."""
        with suppress(ConnectionLostError):
            self._write(CloseConnection(code=1000))

    def _write(self, event: Event) -> None:
        with _translated():
            self._stream.write(self._state.send(event), timeout=SILENCE_SECONDS)

    def _read(self) -> bytes:
        """Read available bytes; empty at the end of the connection."""
        with _translated():
            try:
                return self._stream.read(CHUNK_BYTES, timeout=SILENCE_SECONDS)
            except httpcore2.ReadTimeout:
                self._write(Ping())
            return self._stream.read(CHUNK_BYTES, timeout=SILENCE_SECONDS)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except LocalProtocolError:  # its message contains all unsent data
        raise ConnectionLostError("closed before everything was sent") from None
    except (RemoteProtocolError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise ConnectionLostError(str(error) or type(error).__name__) from None
