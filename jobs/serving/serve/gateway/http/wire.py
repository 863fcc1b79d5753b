"""What was sent to a client so far, read back from its bytes."""

from collections.abc import Iterator

import httptools


class Wire:
    """An answer as it stands on the wire: interim answers left out, chunks joined."""

    def __init__(self, raw: memoryview | bytes) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        if len(raw):
            self._parser.feed_data(raw)

    @property
    def begun(self) -> bool:
        """Whether a status and headers are there."""
        return self.status >= 200

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._parts)

    def parts(self) -> Iterator[bytes]:
        """The body's pieces, as they were sent."""
        return iter(self._parts)

    # --- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = {}

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """An answer has ended."""
        self.complete = self.begun
