"""The gateway's HTTP server: who may ask what, how long and how large a request may be, and its own pages.

Method, path and token are judged before the body of a request is read.
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
from aiohttp import web

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.serve.gateway.errors import RefusalError, json_response
from ropewalk.jobs.serving.serve.gateway.exchange.client_stream import ClientStream, Context
from ropewalk.jobs.serving.serve.gateway.exchange.exchange import Exchange
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, OTHERS
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

FEEDBACK = "/v1/feedback"
_ANSWERS = frozenset({CHAT, COMPLETIONS, *OTHERS})
_HEALTH = frozenset({"/healthz", "/readyz"})
_PAGES = frozenset({*_HEALTH, "/metrics", "/v1/models"})
_READ_AHEAD_BYTES = 2**20  # of an answer, buffered for a slow client so that its replica is free early
_DISCARDED_BYTES = 2**16
_READ_BYTES = 2**11  # of a body, read ahead of the handler; a chunk counts as four bytes, and takes a microsecond or two
_LOCAL_NAMES = (".svc", ".svc.cluster.local", ".localhost")


class Server(web.Server):
    """An HTTP server that bounds its connections, in all and by peer address."""

    def __init__(self, gateway: "Gateway", settings: GatewaySettings) -> None:
        super().__init__(
            gateway.handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=settings.idle_seconds,
            lingering_time=0,
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )
        self._settings = settings
        self._peers: Counter[str] = Counter()
        self._addresses: dict[web.RequestHandler, str] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Accept a connection, or close it if there are too many."""
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        address = self._addresses[handler] = str(peer[0]) if peer else ""
        self._peers[address] += 1
        if len(self._addresses) > self._settings.max_connections or self._peers[address] > self._settings.peer_connections:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_READ_AHEAD_BYTES)
        sock = transport.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._settings.stalled_seconds))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if (address := self._addresses.pop(handler, None)) is not None:
            self._peers[address] -= 1
            if not self._peers[address]:
                del self._peers[address]


class Gateway:
    """Handler of all requests."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = context.settings
        self.server = Server(self, self.settings)
        self._tokens = self.settings.tokens()
        self._token_time = self._time_of_tokens()
        self._body_bytes = 0  # of all requests that are not answered yet

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        clock = Clock()
        try:
            client = self._check(request)
            if request.method != "POST":
                return self._page(request.path)
            async with self._body(request) as body:
                if request.path == FEEDBACK:
                    return await self._store_feedback(body, client)
                return await Exchange(self.context, ClientStream(self.context, request, body, clock, client)).run()
        except RefusalError as error:
            return await self._refuse(request, error.response())

    async def _refuse(self, request: web.BaseRequest, response: web.Response) -> web.Response:
        """Discard a small body. A larger one is not read: its client gets a moment to read the answer, and is disconnected."""
        if not await self._discard(request):
            response.force_close()
            with suppress(ConnectionResetError):  # the client is gone
                await response.prepare(request)
                await response.write_eof()
            if request.transport is not None:
                request.transport.pause_reading()
            await asyncio.sleep(self.settings.linger_seconds)
        return response

    async def _discard(self, request: web.BaseRequest) -> bool:
        """Read the rest of a small body; return False for a larger one, and one in chunks, each of which takes time."""
        if request.content_length is None or request.content_length > _DISCARDED_BYTES:
            return request.content.at_eof()
        num_bytes = 0
        with suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(self.settings.linger_seconds):
                while not request.content.at_eof() and num_bytes < _DISCARDED_BYTES:
                    num_bytes += len(await request.content.readany())
        return request.content.at_eof()

    # --- requests

    def _check(self, request: web.BaseRequest) -> str | None:
        """Return the name of the client. Raises RefusalError for a foreign page, a wrong token, path or method."""
        path = request.path
        self._check_origin(request)
        client = None if path in _HEALTH else self._client(request.headers.get("authorization", ""))
        is_page = path in _PAGES or path.startswith("/v1/models/")
        if not is_page and path not in _ANSWERS and (path != FEEDBACK or self.context.capture is None):
            raise RefusalError(404, f"no such path: {path}", "not_found")
        methods = ("GET", "HEAD") if is_page else ("POST",)
        if request.method not in methods:
            raise RefusalError(405, f"{path} accepts {' and '.join(methods)}, not {request.method}", "method_not_allowed")
        return client

    def _client(self, authorization: str) -> str | None:
        if not self._tokens:
            return None
        scheme, _, token = authorization.partition(" ")
        matches = [
            name
            for valid, name in self._tokens.items()
            if hmac.compare_digest(valid, token.strip().encode(errors="surrogateescape"))
        ]
        if not matches or scheme.lower() != "bearer":
            message = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            raise RefusalError(401, message, "invalid_api_key")
        return matches[0]

    def _check_origin(self, request: web.BaseRequest) -> None:
        """Refuse requests that a web page of another site makes in a user's browser, if no token protects against them."""
        if self._tokens:
            return
        host = request.headers.get("host", "")
        if host and not _is_own_name(host):
            raise RefusalError(403, f"the header Host names {host!r}, not this endpoint; use its address", "foreign_host")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusalError(403, f"pages of {origin} may not use this endpoint", "foreign_origin")
        if request.method == "POST" and request.content_type != "application/json":
            raise RefusalError(415, "send the body as Content-Type: application/json", "unsupported_media_type")

    @asynccontextmanager
    async def _body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """Read the body of a request. Raises RefusalError if it is too large or too slow."""
        limit = self.settings.max_body_bytes
        too_large = RefusalError(413, f"a body of more than {limit} bytes; send less", "request_too_large")
        if (request.content_length or 0) > limit:
            raise too_large
        if request.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.content.iter_any():
                    parts.append(part)
                    num_bytes += len(part)
                    self._body_bytes += len(part)
                    if num_bytes > limit:
                        raise too_large
                    if self._body_bytes > self.settings.max_open_bytes:
                        raise RefusalError(503, "too many requests are open; retry later", "overloaded", retry_after=5)
            yield b"".join(parts)
        except TimeoutError:
            raise RefusalError(408, "the body did not arrive in time", "request_timeout") from None
        except web.RequestPayloadError as error:
            raise RefusalError(400, f"malformed HTTP: {error}", "malformed_request") from None
        finally:
            self._body_bytes -= num_bytes

    async def _store_feedback(self, body: bytes, client: str | None) -> web.Response:
        assert self.context.capture is not None
        status, answer = await self.context.capture.feedback(f"feedback-{secrets.token_hex(16)}", body, client)
        return json_response(answer, status=status)

    # --- tokens

    def _time_of_tokens(self) -> int:
        path = self.settings.token_file
        return path.stat().st_mtime_ns if path is not None else 0

    async def follow_tokens(self) -> None:
        """Read the file of tokens again whenever it changes, forever."""
        while self.settings.token_file is not None:
            await asyncio.sleep(1.0)
            try:
                if (changed := self._time_of_tokens()) != self._token_time:
                    self._tokens, self._token_time = self.settings.tokens(), changed
            except (OSError, ConfigError) as error:
                log.warning("the tokens stay as they are: %s", error)

    # --- pages

    def _page(self, path: str) -> web.Response:
        table = self.context.table
        if path == "/healthz":
            return json_response(b'{"status":"ok"}')
        if path == "/readyz":
            ready = table.is_ready
            return json_response(b'{"status":"ready"}' if ready else b'{"status":"not ready"}', status=200 if ready else 503)
        if path == "/metrics":
            capture = self.context.capture
            page = self.context.metrics.page(
                table,
                len(self.server.connections),
                unrecorded=capture.waiting if capture is not None else 0,
                dropped=capture.lost if capture is not None else 0,
            )
            return web.Response(body=page, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})
        if path == "/v1/models":
            return json_response(orjson.dumps({"object": "list", "data": [_model(name) for name in table.names()]}))
        name = path.removeprefix("/v1/models/")
        if name not in table.names():
            raise RefusalError(404, f"there is no model {name!r}", "model_not_found", param="model")
        return json_response(orjson.dumps(_model(name)))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ropewalk"}


def _is_own_name(host: str) -> bool:
    """Return True for names that no other site can own: IP addresses, this machine, and names of a cluster's own network."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    name = name.lower().rstrip(".")
    return "." not in name or name.endswith(_LOCAL_NAMES) or name in (socket.gethostname().lower(), socket.getfqdn().lower())
