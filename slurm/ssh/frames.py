"""Frames between the command and its helper on a login node: a kind of one byte, a length of four, and the content."""

import json
import os
import struct
import threading
import zlib
from enum import Enum
from typing import IO, Any

HEAD = struct.Struct(">cI")  # the same in bootstrap.py
MAGIC = b"\0ropewalk frames\0"  # before the first frame, and on the standard error; login scripts may print something before
CHUNK_BYTES = 1 << 18
COMPRESSION = 3  # level of zlib: a login node's network is not slower
SHORT_BYTES = 1 << 12  # of output that is not worth compressing


class Kind(bytes, Enum):
    """Kinds of frames."""

    REQUEST = b"Q"  # to the helper: the whole request, as JSON
    PROGRAM = b"P"  # to the bootstrap: SHA-256 and a tar.gz of this program
    ENTRIES = b"T"  # to the helper: mode and hash of each file of a tree, as JSON
    CONTENT = b"B"  # both ways: compressed part of a content; an empty one ends it
    INPUT = b"I"  # to the helper: standard input; an empty one ends it
    SIZE = b"W"  # to the helper: rows and columns of the user's terminal, as JSON
    INTERRUPT = b"S"  # to the helper: Ctrl-C
    ALIVE = b"H"  # both ways
    NEED = b"N"  # to the client: contents that are missing, or standard input, as JSON
    OUT = b"O"
    ERR = b"E"
    PACKED = b"Z"  # to the client: compressed frame of the two above, for a long list over a slow network
    FILE = b"F"  # to the client: path and mode of a file that the command wrote, as JSON; its content follows
    EXIT = b"X"  # to the client: exit code and submitted runs, as JSON


class ConnectionEndedError(Exception):
    """The other side is gone."""


class Frames:
    """Frames over two file descriptors. Several threads may send."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self._writing = reading, writing
        self._lock = threading.Lock()
        self.sent = 0

    def send(self, kind: Kind, content: bytes | dict[str, Any] | list[Any] = b"") -> None:
        """Send a frame; anything but bytes goes as JSON. Raises ConnectionEndedError."""
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        rest = memoryview(HEAD.pack(kind.value, len(payload)) + payload)
        try:
            with self._lock:
                self.sent += len(rest)
                while rest:
                    rest = rest[os.write(self._writing, rest) :]
        except OSError as error:
            raise ConnectionEndedError from error

    def send_output(self, kind: Kind, content: bytes) -> None:
        """Send output, compressed if it is long. Raises ConnectionEndedError."""
        if len(content) > SHORT_BYTES:
            kind, content = Kind.PACKED, zlib.compress(kind.value + content, COMPRESSION)
        self.send(kind, content)

    def send_content(self, stream: IO[bytes]) -> None:
        """Send a file's content in compressed parts. Raises ConnectionEndedError."""
        press = zlib.compressobj(COMPRESSION)
        while content := stream.read(CHUNK_BYTES):
            if part := press.compress(content):
                self.send(Kind.CONTENT, part)
        self.send(Kind.CONTENT, press.flush())
        self.send(Kind.CONTENT)

    def receive_content(self) -> bytes:
        """Return the next part of a content, empty after the last one. Raises ConnectionEndedError."""
        while True:
            kind, content = self.receive()
            if kind is Kind.CONTENT:
                return content

    def receive(self) -> tuple[Kind, bytes]:
        """Wait for the next frame. Raises ConnectionEndedError."""
        kind, size = HEAD.unpack(self.read(HEAD.size))
        content = self.read(size)
        if kind == Kind.PACKED:
            content = zlib.decompress(content)
            kind, content = content[:1], content[1:]
        return Kind(kind), content

    def receive_json(self, expected: Kind) -> Any:
        """Wait for the next frame of a kind, and return its JSON; signs of life are skipped. Raises ConnectionEndedError."""
        while True:
            kind, content = self.receive()
            if kind is expected:
                return json.loads(content)
            if kind is not Kind.ALIVE:
                raise ConnectionEndedError(f"an unexpected frame {kind.value!r}")

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises ConnectionEndedError."""
        parts, left = list[bytes](), size
        while left:
            try:
                part = os.read(self.reading, min(left, 1 << 20))
            except OSError as error:
                raise ConnectionEndedError from error
            if not part:
                raise ConnectionEndedError
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
