"""The client's side of an exchange: the answer that was sent so far, and its record.

An exchange is recorded before the last byte of its answer is sent, so that a client that has its answer finds it recorded.
"""

import logging
import secrets
import zlib
from dataclasses import dataclass

from aiohttp import web

from ropewalk.jobs.serving.feedback.capture import Capture
from ropewalk.jobs.serving.feedback.exchange import Exchange as FinishedExchange
from ropewalk.jobs.serving.feedback.exchange import Outcome
from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.exchange.events import SentStream, read_sent
from ropewalk.jobs.serving.serve.gateway.exchange.metrics import Metrics
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Record
from ropewalk.jobs.serving.serve.gateway.exchange.request import ModelRequest
from ropewalk.jobs.serving.serve.gateway.routing.table import Table
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.upstream import Reply, Upstreams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """Services shared by all exchanges of a gateway: settings, routing, and the destinations of finished exchanges."""

    settings: GatewaySettings
    table: Table
    upstreams: Upstreams
    metrics: Metrics
    capture: Capture | None


class ClientStream:
    """Answer of one request, streamed or whole."""

    def __init__(self, context: Context, http: web.BaseRequest, body: bytes, clock: Clock, client: str | None) -> None:
        self.http, self.body, self.clock = http, body, clock
        self.record = Record(id=f"req-{secrets.token_hex(16)}", path=http.path)
        self.request: ModelRequest | None = None  # once it was parsed
        self.response: web.StreamResponse | None = None  # of a stream, once its head was sent
        self.seed = zlib.crc32(self.record.id.encode()) & 0x7FFFFFFF
        self.num_bytes = 0  # of the body sent so far
        self.cannot_continue = False  # an engine refused to continue
        self.failures = 0  # responses with a server error
        self._context, self._client = context, client
        self._answer: list[bytes] = []  # body sent so far
        self._prompt_ids: list[int] = []
        self._token_ids: list[int] | None = None
        self._recorded = False

    @property
    def streaming(self) -> bool:
        """Return True once the response head of a stream was sent."""
        return self.response is not None

    async def begin_stream(self, reply: Reply) -> None:
        self.record.status = reply.status
        self.record.first_token_seconds = self.clock.seconds()
        headers = self._headers(reply.content_type) | {"cache-control": "no-cache"}
        self.response = web.StreamResponse(status=reply.status, headers=headers)
        await self.response.prepare(self.http)

    async def send_piece(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        """Send events of a stream. Waits while a slow client has much to receive."""
        assert self.response is not None
        self._keep(data, prompt_ids, token_ids)
        await self.response.write(data)

    async def end_stream(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> web.StreamResponse:
        """Record the exchange, then send the last events of a stream."""
        assert self.response is not None
        self._keep(data, prompt_ids, token_ids)
        await self._finish_durably("completed")
        await self.response.write_eof(data)
        return self.response

    def _keep(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        self._answer.append(data)
        self.num_bytes += len(data)
        self._prompt_ids += prompt_ids
        if token_ids is not None:
            self._token_ids = self._token_ids if self._token_ids is not None else []
            self._token_ids += token_ids
        if self.num_bytes > self._context.settings.max_answer_bytes:
            raise RefusalError(502, "the answer is longer than max_answer_bytes", "answer_too_long")

    def sent_stream(self) -> SentStream:
        """Return the part of the stream that was sent."""
        assert self.request is not None
        return read_sent(self.request, b"".join(self._answer), self._prompt_ids, self._token_ids)

    async def send_whole(self, status: int, content_type: str, body: bytes) -> web.Response:
        """Record the exchange, and return the response that is not a stream."""
        self.record.status = status
        self._answer = [body]
        await self._finish_durably("completed")
        return web.Response(body=body, status=status, headers=self._headers(content_type))

    def _headers(self, content_type: str) -> dict[str, str]:
        return {
            "content-type": content_type,
            "x-request-id": self.record.id,
            "x-ropewalk-version": self.record.version,
            "x-ropewalk-replica": self.record.replica,
            "server-timing": self.clock.timing(),
        }

    async def refuse(self, error: RefusalError, outcome: Outcome | None = None) -> web.StreamResponse:
        """Record the exchange, and answer with an error: as the last event of a stream, if it has begun."""
        if self._recorded and self.response is not None:
            return self.response
        outcome = outcome or ("refused" if error.status < 500 or error.status == 503 else "failed")
        if self.response is not None:
            event = b"data: " + error.body() + b"\n\n"
            self._answer.append(event)
            await self._finish_durably(outcome)
            await self.response.write_eof(event)
            return self.response
        self.record.status = error.status
        self._answer = [error.body()]
        await self._finish_durably(outcome)
        return error.response({"x-request-id": self.record.id})

    # --- the record

    async def _finish_durably(self, outcome: Outcome) -> None:
        """Record the exchange, and wait until the record outlives this process."""
        self.finish(outcome)
        if self._context.capture is not None:
            await self._context.capture.handed_over()

    def finish(self, outcome: Outcome) -> None:
        """Record the exchange, once."""
        if self._recorded:
            return
        self._recorded = True
        try:
            self._store("refused" if outcome == "completed" and 400 <= self.record.status < 500 else outcome)
        except Exception:
            log.exception("%s: recording failed", self.record.id)

    def _store(self, outcome: Outcome) -> None:
        record, clock, request = self.record, self.clock, self.request
        record.outcome = outcome
        if record.first_token_seconds is None and clock.pieces:
            record.first_token_seconds = clock.first_seconds
        answer = b"".join(self._answer)
        if self._context.capture is not None:
            finished = FinishedExchange(
                **vars(record),
                time=clock.arrived,
                request=self.body,
                answer=answer,
                seconds=clock.seconds(),
                conversation=request.conversation if request is not None else b"",
                completion_tokens=None if self._token_ids is None else len(self._token_ids),
                client=self._client,
            )
            self._context.capture.record(finished)
        self._context.metrics.count(record, clock)
