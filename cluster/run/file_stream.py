"""Files as one stream of bytes: before each file a line of JSON with its path, offset and size; {"end": true} after the last."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 20
END = b'{"end": true}\n'


def send_file(out: IO[bytes], path: Path, header: Mapping[str, Any]) -> None:
    """Write the part of a file that a header announces ({path, offset, size, ...}) to a stream."""
    with path.open("rb") as source:
        send_open_file(out, source, header)


def send_open_file(out: IO[bytes], source: IO[bytes], header: Mapping[str, Any]) -> None:
    """Write the part of an open file that a header announces to a stream."""
    out.write(json.dumps(header).encode() + b"\n")
    left = header["size"]
    source.seek(header["offset"])
    while left:  # a file that was truncated meanwhile is corrected next time
        chunk = source.read(min(left, CHUNK_BYTES)) or bytes(min(left, CHUNK_BYTES))
        out.write(chunk)
        left -= len(chunk)


class StreamWriter(ABC):
    """Takes a stream in chunks of any size, and writes each file as its bytes arrive."""

    def __init__(self) -> None:
        self.complete = False  # the end has arrived
        self._buffer = bytearray()
        self._header: dict[str, Any] | None = None
        self._left = 0
        self._file: IO[bytes] | None = None

    @abstractmethod
    def open_file(self, header: Mapping[str, Any]) -> IO[bytes]:
        """Open the file of a header for its content, which begins at the header's offset."""

    @abstractmethod
    def finish_file(self, header: Mapping[str, Any]) -> None:
        """Put a file in its place; its content is complete and the file is closed."""

    def finish(self, header: Mapping[str, Any]) -> None:
        """Note the end of the stream."""
        self.complete = True

    def begin(self) -> None:
        """Start again after an interrupted stream."""
        if self._file is not None:
            self._file.close()
        self.complete, self._header, self._file = False, None, None
        self._buffer.clear()

    def write(self, data: bytes) -> int:
        """Process the next chunk of the stream."""
        self._buffer += data
        while self._step():
            pass
        return len(data)

    def _step(self) -> bool:
        if self._header is None:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                return False
            self._buffer = rest
            header = json.loads(line)
            if header.get("end"):
                self.finish(header)
                return False
            self._file, self._header, self._left = self.open_file(header), header, header["size"]
        assert self._file is not None
        piece = self._buffer[: self._left]
        self._file.write(piece)
        self._left -= len(piece)
        del self._buffer[: len(piece)]
        if self._left:
            return False
        self._file.close()
        self.finish_file(self._header)
        self._header = self._file = None
        return True
