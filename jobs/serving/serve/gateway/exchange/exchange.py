"""Handling of one request: routing, queueing, an upstream attempt, and further attempts if that fails.

An exchange is recorded before the last byte of its answer is sent, so that a client that has its answer finds it recorded.
"""

import asyncio
import logging
import secrets
import time
import zlib

from aiohttp import web

from ropewalk.jobs.serving.feedback.exchange import Exchange as FinishedExchange
from ropewalk.jobs.serving.feedback.exchange import Outcome
from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.exchange.context import Context
from ropewalk.jobs.serving.serve.gateway.exchange.readers import DivergedError
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Record
from ropewalk.jobs.serving.serve.gateway.exchange.request import ModelRequest, read_request
from ropewalk.jobs.serving.serve.gateway.exchange.sent import SentStream, read_sent
from ropewalk.jobs.serving.serve.gateway.exchange.upstream_attempt import UnavailableError, UpstreamAttempt
from ropewalk.jobs.serving.serve.gateway.routing.prefixes import prefix_blocks
from ropewalk.jobs.serving.serve.gateway.routing.queue import Slot
from ropewalk.jobs.serving.serve.gateway.upstream import BrokenError, Reply, UnreachableError

log = logging.getLogger(__name__)

MAX_DEATHS = 4  # replicas a request may crash without progress in its answer


class Exchange:
    """One request to a model, from its arrival to its record."""

    def __init__(self, context: Context, http: web.BaseRequest, body: bytes, clock: Clock, client: str | None) -> None:
        self.context, self.http, self.body, self.clock, self.client = context, http, body, clock, client
        self.record = Record(id=f"req-{secrets.token_hex(16)}", path=http.path)
        self.request: ModelRequest | None = None
        self.response: web.StreamResponse | None = None  # of a stream, once its head was sent
        self.seed = zlib.crc32(self.record.id.encode()) & 0x7FFFFFFF
        self.cannot_continue = False  # an engine refused to continue
        self.failures = 0  # responses with a server error
        self._answer: list[bytes] = []  # body sent so far
        self._num_bytes = 0
        self._prompt_ids: list[int] = []
        self._token_ids: list[int] | None = None
        self._deaths = 0
        self._recorded = False

    @property
    def streaming(self) -> bool:
        """Return True once the response head of a stream was sent."""
        return self.response is not None

    async def run(self) -> web.StreamResponse:
        """Answer the request, record it, and return the response."""
        try:
            return await self._run()
        except asyncio.CancelledError:
            self._finish("cancelled")
            raise
        except ConnectionError:  # the client is gone; errors of engines have types of their own
            self._finish("cancelled")
            return self.response or web.Response(status=499)

    async def _run(self) -> web.StreamResponse:
        try:
            self.request = read_request(self.http.path, self.http.headers, self.body)
            async with asyncio.timeout_at(self._deadline(self.request)):
                return await self._try_replicas(self.request)
        except RefusalError as error:
            return await self._refuse(error)
        except TimeoutError:
            message = "the deadline has passed; set a longer one with the header x-request-timeout"
            return await self._refuse(RefusalError(504, message, "deadline_exceeded"), "deadline")
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s: internal error", self.record.id)
            return await self._refuse(RefusalError(500, "internal error of the gateway; see its log", "internal_error"), "failed")

    def _deadline(self, request: ModelRequest) -> float:
        settings = self.context.settings
        seconds = min(request.timeout_seconds or settings.deadline_seconds, settings.longest_deadline_seconds)
        self._until = self.clock.began + seconds
        return asyncio.get_running_loop().time() + self._until - time.monotonic()

    async def _try_replicas(self, request: ModelRequest) -> web.StreamResponse:
        """Try replicas until the answer is complete. Raises RefusalError."""
        table = self.context.table
        await table.ready()
        self.record.alias, self.record.version = table.version_for(request.model, request.conversation)
        blocks = prefix_blocks(request.prompt_bytes, self.context.settings.prefix_block)
        resumed = False
        while True:
            self._follow_alias(request)
            queue = table.queue(self.record.version)
            self.clock.mark_queued()
            slot = await queue.take(blocks, remaining_seconds=self._until - time.monotonic(), resumed=resumed)
            completed, before = False, self._num_bytes
            try:
                self.clock.mark_dispatched()
                self.record.replica = slot.state.replica.id
                attempt = UpstreamAttempt(
                    *(self, request, slot.state.replica, self.record.version),
                    upstreams=self.context.upstreams,
                    limit_bytes=self.context.settings.max_answer_bytes,
                )
                response = await attempt.run()
                completed = True
                return response
            except (UnreachableError, UnavailableError) as error:
                self._leave_replica(slot, str(error))
            except BrokenError as error:
                self._leave_replica(slot, str(error))
                self._count_death(progress=self._num_bytes > before)
            except DivergedError:
                message = "the replica was lost, and another one answers differently; use temperature 0 or a seed"
                raise RefusalError(502, message, "stream_interrupted") from None
            finally:
                slot.give_back(completed=completed)
            resumed = True

    def _follow_alias(self, request: ModelRequest) -> None:
        """Resolve the name again if its version is gone and nothing of the answer was sent."""
        table = self.context.table
        if not self.streaming and table.routes is not None and self.record.version not in table.routes.versions:
            self.record.alias, self.record.version = table.version_for(request.model, request.conversation)

    def _leave_replica(self, slot: Slot, cause: str) -> None:
        log.warning("%s: replica %s: %s; trying another one", self.record.id, slot.state.replica.id, cause)
        self.context.table.mark_unhealthy(slot.queue, slot.state)
        self.record.moves += 1
        self.context.metrics.moves.inc()

    def _count_death(self, *, progress: bool) -> None:
        self._deaths = 0 if progress else self._deaths + 1
        if self._deaths >= MAX_DEATHS:
            raise RefusalError(502, f"this request crashed {self._deaths} replicas and is not retried", "replicas_failed")

    # --- output to the client

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
        self._finish("completed")
        await self.response.write_eof(data)
        return self.response

    def _keep(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        self._answer.append(data)
        self._num_bytes += len(data)
        self._prompt_ids += prompt_ids
        if token_ids is not None:
            self._token_ids = self._token_ids if self._token_ids is not None else []
            self._token_ids += token_ids
        if self._num_bytes > self.context.settings.max_answer_bytes:
            raise RefusalError(502, "the answer is longer than max_answer_bytes", "answer_too_long")

    def sent_stream(self) -> SentStream:
        """Return the part of the stream that was sent."""
        assert self.request is not None
        return read_sent(self.request, b"".join(self._answer), self._prompt_ids, self._token_ids)

    def send_whole(self, status: int, content_type: str, body: bytes) -> web.Response:
        """Record the exchange, and return the response that is not a stream."""
        self.record.status = status
        self._answer = [body]
        self._finish("completed")
        return web.Response(body=body, status=status, headers=self._headers(content_type))

    def _headers(self, content_type: str) -> dict[str, str]:
        return {
            "content-type": content_type,
            "x-request-id": self.record.id,
            "x-ropewalk-version": self.record.version,
            "x-ropewalk-replica": self.record.replica,
            "server-timing": self.clock.timing(),
        }

    async def _refuse(self, error: RefusalError, outcome: Outcome | None = None) -> web.StreamResponse:
        if self._recorded and self.response is not None:
            return self.response
        outcome = outcome or ("refused" if error.status < 500 or error.status == 503 else "failed")
        if self.response is not None:
            event = b"data: " + error.body() + b"\n\n"
            self._answer.append(event)
            self._finish(outcome)
            await self.response.write_eof(event)
            return self.response
        self.record.status = error.status
        self._answer = [error.body()]
        self._finish(outcome)
        return error.response({"x-request-id": self.record.id})

    # --- the record

    def _finish(self, outcome: Outcome) -> None:
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
        if self.context.capture is not None:
            finished = FinishedExchange(
                **vars(record),
                time=clock.arrived,
                request=self.body,
                answer=answer,
                seconds=clock.seconds(),
                conversation=request.conversation if request is not None else b"",
                completion_tokens=None if self._token_ids is None else len(self._token_ids),
                client=self.client,
            )
            self.context.capture.record(finished)
        self.context.metrics.count(record, clock)
