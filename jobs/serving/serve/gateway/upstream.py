"""The gateway as a client of engines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

_CONNECT_SECONDS = 5.0
_IDLE_SECONDS = 4.0  # of a pooled connection; engines close theirs after five seconds and more


class UnreachableError(Exception):
    """An engine that accepts no connection: it did not get the request."""


class BrokenError(Exception):
    """An answer whose connection ended before it did."""


class Reply:
    """An engine's answer, while it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        self._content = response.content

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises BrokenError."""
        try:
            async for piece in self._content.iter_any():
                yield piece
        except aiohttp.ClientError as error:
            raise BrokenError(f"the engine's connection broke: {error}") from error


class Upstreams:
    """Pooled connections to all engines."""

    def __init__(self, token: str | None = None) -> None:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            headers=headers,
            skip_auto_headers=("user-agent", "accept-encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    @asynccontextmanager
    async def ask(self, url: str, path: str, body: bytes = b"", *, method: str = "POST") -> AsyncIterator[Reply]:
        """Send a request and yield the reply. Leaving it before its end closes the connection, which cancels the engine's work.

        Raises UnreachableError or BrokenError.
        """
        try:
            response = await self._session.request(method, url + path, data=body or None, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UnreachableError(f"{url}: {error}") from error
        except aiohttp.ClientError as error:
            raise BrokenError(f"{url}: the engine gave no answer: {error}") from error
        try:
            yield Reply(response)
        finally:
            response.close()

    async def close(self) -> None:
        await self._session.close()
