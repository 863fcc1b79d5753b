"""A request's head and the bounds of its body. llhttp judges the head; where a request ends is found here, to the byte.

To the byte, because a successor must know which bytes of a connection belong to the request that is open.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import httptools

MOST_HEAD_BYTES = 2**15
_END = b"\r\n\r\n"
_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MOST_SIZE_LINE = 1024


class BadRequestError(Exception):
    """A request that is refused before anybody looks at what it asks."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Head:
    """Method, target and headers of a request."""

    method: str = ""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)  # names in lower case
    keep_alive: bool = True
    old: bool = False  # HTTP/1.0: a body is not sent in pieces

    @property
    def path(self) -> str:
        """The target's path, without a query."""
        return self.target.partition(b"?")[0].decode("latin-1")

    @property
    def chunked(self) -> bool:
        """Whether the body's length is told piece by piece."""
        return b"transfer-encoding" in self.headers

    @property
    def length(self) -> int:
        """The body's length, where it is told at the beginning."""
        return int(self.headers.get(b"content-length", b"0"))


class Body(NamedTuple):
    """A whole body, and the position after it."""

    data: bytes
    end: int


class _Collector:
    def __init__(self) -> None:
        self.head = Head()
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.head.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        known = self.head.headers.get(name)
        if known is not None and name in (b"content-length", b"transfer-encoding", b"host", b"authorization"):
            raise BadRequestError(400, f"the header {name.decode('latin-1')} stands twice", "malformed_request")
        self.head.headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        self.complete = True
        self.head.keep_alive = self.parser.should_keep_alive()  # later on the parser has forgotten it


def read_head(data: memoryview) -> tuple[Head, int] | None:
    """(A request's head, the position after it); None while it is not whole. Raises BadRequestError."""
    start = 2 if bytes(data[:2]) == b"\r\n" else 0
    raw = bytes(data[start : start + MOST_HEAD_BYTES])
    if raw and not raw[:1].isupper() and raw != b"\r":
        raise BadRequestError(400, "this is no HTTP/1.1 request", "malformed_request")
    end = raw.find(_END)
    if end < 0:
        if len(raw) >= MOST_HEAD_BYTES:
            raise BadRequestError(431, f"headers of more than {MOST_HEAD_BYTES} bytes", "headers_too_large")
        return None
    return _parse(raw[: end + len(_END)]), start + end + len(_END)


def _parse(raw: bytes) -> Head:
    collector = _Collector()
    parser = collector.parser
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        if not collector.complete:
            raise BadRequestError(400, "no tunnels are made here", "malformed_request") from None
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, BadRequestError):
            raise error.__context__ from None
        raise
    except httptools.HttpParserError as error:
        raise BadRequestError(400, f"malformed HTTP: {error}", "malformed_request") from None
    head = collector.head
    if not collector.complete:
        raise BadRequestError(400, "malformed HTTP: the headers do not end", "malformed_request")
    head.method = parser.get_method().decode("latin-1")
    head.old = parser.get_http_version() == "1.0"
    if parser.get_http_version() not in ("1.1", "1.0"):
        raise BadRequestError(505, "only HTTP/1.1 is spoken here", "http_version")
    if head.chunked and head.headers[b"transfer-encoding"].lower() != b"chunked":
        raise BadRequestError(501, "no transfer encoding but chunked is understood", "transfer_encoding")
    return head


def read_body(head: Head, data: memoryview, start: int, limit_bytes: int) -> Body | None:
    """The body that begins at a position; None while it is not whole. Raises BadRequestError."""
    if head.chunked:
        return _read_chunks(data, start, limit_bytes)
    length = head.length
    if length > limit_bytes:
        raise _too_large(limit_bytes)
    return Body(bytes(data[start : start + length]), start + length) if len(data) >= start + length else None


def _read_chunks(data: memoryview, at: int, limit_bytes: int) -> Body | None:
    parts: list[bytes] = []
    total = 0
    while True:
        line = bytes(data[at : at + _MOST_SIZE_LINE])
        match = _SIZE.match(line)
        if match is None:
            if b"\n" in line or len(line) == _MOST_SIZE_LINE:
                raise BadRequestError(400, "malformed HTTP: the size of a chunk is no number", "malformed_request")
            return None
        size, at = int(match[1], 16), at + match.end()
        if size == 0:
            end = _trailer_end(bytes(data[at : at + MOST_HEAD_BYTES]))
            return None if end is None else Body(b"".join(parts), at + end)
        if (total := total + size) > limit_bytes:
            raise _too_large(limit_bytes)
        if len(data) < at + size + 2:
            return None
        if bytes(data[at + size : at + size + 2]) != b"\r\n":
            raise BadRequestError(400, "malformed HTTP: a chunk is longer than it says", "malformed_request")
        parts.append(bytes(data[at : at + size]))
        at += size + 2


def _trailer_end(raw: bytes) -> int | None:
    if raw.startswith(b"\r\n"):
        return 2
    end = raw.find(_END)
    if end < 0 and len(raw) >= MOST_HEAD_BYTES:
        raise BadRequestError(431, "the trailer is too large", "headers_too_large")
    return None if end < 0 else end + len(_END)


def _too_large(limit_bytes: int) -> BadRequestError:
    return BadRequestError(413, f"a body of more than {limit_bytes} bytes; send less", "request_too_large")
