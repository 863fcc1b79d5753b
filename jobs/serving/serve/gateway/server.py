"""The gateway's connections, its URL paths, and its periodic work."""

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from ropewalk.jobs.serving.serve.gateway.exchange.context import Context
from ropewalk.jobs.serving.serve.gateway.exchange.exchange import Exchange
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, OTHERS
from ropewalk.jobs.serving.serve.gateway.http.answers import JSON, RefusalError, plain, refusal, whole
from ropewalk.jobs.serving.serve.gateway.http.connection import Connection, OpenExchange
from ropewalk.jobs.serving.serve.gateway.http.head import Head
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Journal
from ropewalk.jobs.serving.serve.gateway.sockets.kernel import Progress, progress

log = logging.getLogger(__name__)

FEEDBACK = "/v1/feedback"
_ANSWERS = frozenset({CHAT, COMPLETIONS, *OTHERS})
_PAGES = frozenset({"/healthz", "/metrics", "/v1/models"})
_LOOK_SECONDS = 1.0
_PLAIN_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class FeedbackHandler(Protocol):
    """Handler of ratings and corrections."""

    async def feedback(self, number: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer. `number` identifies the request: a repeated one is stored once."""
        ...


class _Completed:
    """An exchange that was answered immediately."""

    def hang_up(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Gateway:
    """All client connections, and the handling of their requests."""

    def __init__(self, context: Context, closed: Callable[[int], None], feedback: FeedbackHandler | None = None) -> None:
        self.context = context
        self.settings: GatewaySettings = context.settings
        self.journal: Journal = context.journal
        self.connections: dict[int, Connection] = {}
        self.leaving = False
        self._closed, self._feedback = closed, feedback
        self._token = self.settings.token()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- connections

    async def adopt(self, number: int, sock: socket.socket, record: int | None) -> None:
        """Take over a connection: a new one, or one of an earlier gateway (`record` is its place in the journal)."""
        sock.setblocking(False)
        try:
            reached = Progress(0, 0, alive=True) if record is None else progress(sock)
            if record is None:
                record = self.journal.take_record(number)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, number, sock, record, reached)
            self.connections[number] = connection
            if not reached.alive:
                connection.cancel_open()
                sock.close()
                return
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except (OSError, IndexError) as error:
            log.info("connection %d dropped: %s", number, error)
            if (dropped := self.connections.pop(number, None)) is not None:
                self.journal.free_record(dropped.record)
            sock.close()
            self._closed(number)

    def closed(self, connection: Connection) -> None:
        if self.connections.pop(connection.number, None) is not None:
            self._closed(connection.number)

    async def look_after(self) -> None:
        """Close connections of clients that are too slow, forever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            for connection in list(self.connections.values()):
                connection.expire(now)
                if self.leaving:
                    connection.leave()

    def leave(self) -> None:
        """Stop accepting requests; open ones are finished."""
        self.leaving = True
        for connection in list(self.connections.values()):
            connection.leave()

    # --- requests

    def begin(self, connection: Connection, head: Head, body: bytes) -> OpenExchange:
        """Handle a request, unless an earlier gateway has answered it."""
        try:
            self._check(head)
        except RefusalError as error:
            return self._answer(connection, head, self._refusal(head, error))
        if head.path == FEEDBACK:
            return self._take_feedback(connection, head, body)
        if head.path in _ANSWERS:
            if self.leaving:
                head.keep_alive = False
            return Exchange(self.context, connection, head, body)
        return self._answer(connection, head, self._page(head))

    def _check(self, head: Head) -> None:
        """Raise RefusalError for a wrong token, path or method."""
        path = head.path
        if self._token is not None and path != "/healthz":
            scheme, _, token = head.headers.get(b"authorization", b"").partition(b" ")
            if not (hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"):
                message = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
                raise RefusalError(401, message, "invalid_api_key")
        pages = path in _PAGES or path.startswith("/v1/models/")
        if not pages and path not in _ANSWERS and (path != FEEDBACK or self._feedback is None):
            raise RefusalError(404, f"no such path: {path}", "not_found")
        methods = ("GET", "HEAD") if pages else ("POST",)
        if head.method not in methods:
            raise RefusalError(405, f"{path} accepts {' and '.join(methods)}, not {head.method}", "method_not_allowed")

    def _answer(self, connection: Connection, head: Head, raw: bytes) -> OpenExchange:
        if not connection.answered:
            connection.send(raw)
        connection.ended(keep_alive=head.keep_alive)
        return _Completed()

    def _take_feedback(self, connection: Connection, head: Head, body: bytes) -> OpenExchange:
        async def run() -> None:
            assert self._feedback is not None
            try:
                if not connection.answered:
                    status, answer = await self._feedback.feedback(f"feedback-{connection.request_id}", body)
                    connection.send(whole(status, answer, keep_alive=True))
            finally:
                connection.ended(keep_alive=head.keep_alive)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _Completed()

    # --- pages

    def _page(self, head: Head) -> bytes:
        path, table = head.path, self.context.table
        if path == "/metrics":
            page = self.context.metrics.page(table, len(self.connections), self.context.archive.waiting)
            return self._whole(head, 200, page, [_PLAIN_TEXT])
        if path == "/healthz":
            return self._health(head)
        if path == "/v1/models":
            return self._whole(head, 200, plain({"object": "list", "data": [_model(name) for name in table.names()]}))
        name = path.removeprefix("/v1/models/")
        if name not in table.names():
            return self._refusal(head, RefusalError(404, f"there is no model {name!r}", "model_not_found", param="model"))
        return self._whole(head, 200, plain(_model(name)))

    def _health(self, head: Head) -> bytes:
        table = self.context.table
        answering = {
            version: sum(state.listed and state.unhealthy_since is None for state in queue.replicas.values())
            for version, queue in table.queues.items()
        }
        accepting = table.routes is not None and table.routes.accepting and not self.leaving
        status = "leaving" if table.routes is not None and not accepting else "ok" if any(answering.values()) else "waiting"
        return self._whole(head, 200 if accepting else 503, plain({"status": status, "replicas": answering}))

    @staticmethod
    def _whole(head: Head, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (JSON,)) -> bytes:
        return whole(status, body, headers, keep_alive=head.keep_alive, no_body=head.method == "HEAD")

    @staticmethod
    def _refusal(head: Head, error: RefusalError) -> bytes:
        return refusal(error, keep_alive=head.keep_alive, no_body=head.method == "HEAD")


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ropewalk"}
