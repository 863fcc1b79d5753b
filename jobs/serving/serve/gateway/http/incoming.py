"""The next request among the bytes that a client has sent."""

from typing import NamedTuple

from ropewalk.jobs.serving.serve.gateway.http.head import Head, read_body, read_head
from ropewalk.jobs.serving.serve.gateway.sockets.tape import Tape


class Request(NamedTuple):
    """A request that is whole, and the position after it."""

    head: Head
    body: bytes
    end: int


class Incoming:
    """Looks for requests on a tape. `asks_to_go_on`: the client waits for a word before it sends the body."""

    def __init__(self, tape: Tape, limit_bytes: int) -> None:
        self.asks_to_go_on = False
        self._tape, self._limit_bytes = tape, limit_bytes
        self._head: tuple[Head, int] | None = None
        self._tried_bytes = 0

    def next(self) -> Request | None:
        """The request that begins where the tape begins; None while it is not whole. Raises BadRequestError."""
        data = self._tape.read(self._tape.start, self._tape.end)
        if self._head is None and not self._read_head(data):
            return None
        assert self._head is not None
        head, start = self._head
        if head.chunked and len(data) < 2 * self._tried_bytes and bytes(data[-4:]) != b"\r\n\r\n":
            return None  # a body in pieces is looked through from its beginning: not for each piece
        self._tried_bytes = len(data)
        body = read_body(head, data, start, self._limit_bytes)
        if body is None:
            return None
        self._head, self._tried_bytes, self.asks_to_go_on = None, 0, False
        return Request(head, body.data, self._tape.start + body.end)

    def _read_head(self, data: memoryview) -> bool:
        if not data:
            return False
        self._head = read_head(data)
        self._tried_bytes = len(data)
        self.asks_to_go_on = self._head is not None and self._head[0].headers.get(b"expect", b"").lower() == b"100-continue"
        return self._head is not None
