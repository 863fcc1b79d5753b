"""Answers that the gateway gives itself, and errors in OpenAI's form."""

import http
from collections.abc import Iterable
from typing import Any

import orjson

Header = tuple[bytes, bytes]
JSON: Header = (b"content-type", b"application/json")
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """An error as OpenAI's API words it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def head_bytes(status: int, headers: Iterable[Header], *, keep_alive: bool) -> bytes:
    """Status line and headers of an answer."""
    lines = [b"HTTP/1.1 %d %s" % (status, _phrase(status)), *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"connection: keep-alive" if keep_alive else b"connection: close", b"", b""])


def whole(status: int, body: bytes, headers: Iterable[Header] = (JSON,), *, keep_alive: bool, no_body: bool = False) -> bytes:
    """A whole answer. `no_body`: the request was a HEAD."""
    length = (b"content-length", b"%d" % len(body))
    return head_bytes(status, [*headers, length], keep_alive=keep_alive) + (b"" if no_body else body)


def refusal(error: RefusalError, headers: Iterable[Header] = (), *, keep_alive: bool, no_body: bool = False) -> bytes:
    """An error as a whole answer. `no_body`: the request was a HEAD."""
    all_headers = [JSON, *headers]
    if error.retry_after is not None:
        all_headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.status == 401:
        all_headers.append((b"www-authenticate", b"Bearer"))
    body = error_body(error.status, str(error), error.code, error.param)
    return whole(error.status, body, all_headers, keep_alive=keep_alive, no_body=no_body)


def chunk(data: bytes) -> bytes:
    """A piece of a body whose length nobody knows yet."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def plain(value: Any) -> bytes:
    """A value as JSON."""
    return orjson.dumps(value)


def _phrase(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
