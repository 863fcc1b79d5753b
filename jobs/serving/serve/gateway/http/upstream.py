"""The gateway as a client of engines: connections that are kept, and answers that are handed on as they arrive."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

_CONNECT_SECONDS = 5.0
_KEPT_SECONDS = 4.0  # engines close idle connections after five seconds and more
_KEPT = 64  # connections that are kept, for each engine


class UnreachableError(Exception):
    """An engine takes no connection: it was not asked."""


class BrokenError(Exception):
    """An engine's connection ended before its answer did."""


class Reply(NamedTuple):
    """Status and content type of an answer."""

    status: int
    content_type: bytes


class Receiver(Protocol):
    """Who takes an answer, piece by piece."""

    def on_reply(self, reply: Reply) -> None:
        """The answer begins."""

    def on_data(self, data: bytes) -> None:
        """A piece of its body."""


class _Upstream(asyncio.Protocol):
    """One connection to an engine; one request at a time."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.done: asyncio.Future[None] | None = None
        self.kept_since = 0.0
        self.lost = False
        self.keep = False
        self._content_type = b""
        self._parser: httptools.HttpResponseParser | None = None
        self._error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclasses

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._end(BrokenError(f"the engine's connection broke: {error or 'it was closed'}"))

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.transport.abort()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._end(error.__context__ or error)
            self.transport.abort()
        except httptools.HttpParserError as error:
            self._end(BrokenError(f"the engine's answer is no HTTP: {error}"))
            self.transport.abort()

    def ask(self, raw: bytes, receiver: Receiver) -> asyncio.Future[None]:
        """Send a request; the future is done when its answer has ended."""
        self.receiver, self._content_type, self.keep = receiver, b"", False
        self._parser = httptools.HttpResponseParser(self)
        self.done = asyncio.get_running_loop().create_future()
        if self.lost:
            self._end(BrokenError("the engine's connection was closed"))
        else:
            self.transport.write(raw)
        return self.done

    # --- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        assert self.receiver is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self.receiver.on_reply(Reply(status, self._content_type))

    def on_body(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.on_data(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() >= 200:
            self.keep = self._parser.should_keep_alive()
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        done, self.done, self.receiver = self.done, None, None
        if done is not None and not done.done():
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)


class Upstreams:
    """Connections to all engines."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token
        self._kept: dict[str, list[_Upstream]] = defaultdict(list)

    async def ask(
        self,
        url: str,
        path: str,
        body: bytes,
        receiver: Receiver,
        *,
        method: str = "POST",
        on_connection: Callable[[asyncio.Transport], None] | None = None,
    ) -> None:
        """Ask an engine, and hand its answer on until it ends. Cancelled, or left by an error, it closes the connection,
        by which the engine sees that nobody waits.

        Raises UnreachableError (it was not asked), BrokenError (the answer did not end), and what `receiver` raises.
        """
        raw = _request(method, url, path, body, self._token)
        upstream = self._take(url) or await self._connect(url)
        if on_connection is not None:
            on_connection(upstream.transport)
        try:
            await upstream.ask(raw, receiver)
        except BaseException:
            upstream.transport.abort()
            raise
        if upstream.keep and not upstream.lost and len(self._kept[url]) < _KEPT:
            upstream.kept_since = time.monotonic()
            self._kept[url].append(upstream)
        else:
            upstream.transport.close()

    def forget(self, url: str) -> None:
        """Close what is kept of an engine."""
        for upstream in self._kept.pop(url, ()):
            upstream.transport.close()

    def close(self) -> None:
        """Close all that is kept."""
        for url in list(self._kept):
            self.forget(url)

    def _take(self, url: str) -> _Upstream | None:
        kept = self._kept[url]
        while kept:
            upstream = kept.pop()
            if not upstream.lost and time.monotonic() - upstream.kept_since < _KEPT_SECONDS:
                upstream.transport.resume_reading()
                return upstream
            upstream.transport.close()
        return None

    @staticmethod
    async def _connect(url: str) -> _Upstream:
        where = urlsplit(url)
        host = where.hostname or ""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, upstream = await loop.create_connection(_Upstream, host, where.port or 80)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(f"{url}: {error or 'no answer'}") from error
        return upstream


def _request(method: str, url: str, path: str, body: bytes, token: str | None) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"host: {url.removeprefix('http://')}",
        "content-type: application/json",
        "accept: */*",
        f"content-length: {len(body)}",
        *([f"authorization: Bearer {token}"] if token else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Whole:
    """Receives a whole small answer."""

    def __init__(self) -> None:
        self.status, self.content_type = 0, b""
        self._parts: list[bytes] = []

    def on_reply(self, reply: Reply) -> None:
        """The answer begins."""
        self.status, self.content_type = reply

    def on_data(self, data: bytes) -> None:
        """A piece of its body."""
        self._parts.append(data)

    @property
    def body(self) -> bytes:
        """What arrived."""
        return b"".join(self._parts)
