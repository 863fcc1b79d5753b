"""Handling of one request: routing, queueing, an upstream attempt, and further attempts if that fails."""

import asyncio
import logging
import time

from aiohttp import web

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.exchange.client_stream import ClientStream, Context
from ropewalk.jobs.serving.serve.gateway.exchange.readers import DivergedError
from ropewalk.jobs.serving.serve.gateway.exchange.request import ModelRequest, read_request
from ropewalk.jobs.serving.serve.gateway.exchange.upstream_attempt import UnavailableError, UpstreamAttempt
from ropewalk.jobs.serving.serve.gateway.routing.queue import Slot
from ropewalk.jobs.serving.serve.gateway.routing.replica import prefix_blocks
from ropewalk.jobs.serving.serve.gateway.upstream import BrokenError, UnreachableError

log = logging.getLogger(__name__)

MAX_DEATHS = 4  # replicas a request may crash without progress in its answer


class Exchange:
    """One request to a model, from its arrival to its record."""

    def __init__(self, context: Context, stream: ClientStream) -> None:
        self.context, self.stream, self.record, self.clock = context, stream, stream.record, stream.clock
        self._deaths = 0

    async def run(self) -> web.StreamResponse:
        """Answer the request, record it, and return the response."""
        try:
            return await self._run()
        except asyncio.CancelledError:
            self.stream.finish("cancelled")
            raise
        except ConnectionError:  # the client is gone; errors of engines have types of their own
            self.stream.finish("cancelled")
            return self.stream.response or web.Response(status=499)

    async def _run(self) -> web.StreamResponse:
        try:
            request = self.stream.request = read_request(self.stream.http.path, self.stream.http.headers, self.stream.body)
            async with asyncio.timeout_at(self._deadline(request)):
                return await self._try_replicas(request)
        except RefusalError as error:
            return await self.stream.refuse(error)
        except TimeoutError:
            message = "the deadline has passed; set a longer one with the header x-request-timeout"
            return await self.stream.refuse(RefusalError(504, message, "deadline_exceeded"), "deadline")
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s: internal error", self.record.id)
            return await self.stream.refuse(
                RefusalError(500, "internal error of the gateway; see its log", "internal_error"), "failed"
            )

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
            completed, before = False, self.stream.num_bytes
            try:
                self.clock.mark_dispatched()
                self.record.replica = slot.state.replica.id
                attempt = UpstreamAttempt(
                    *(self.stream, request, slot.state.replica, self.record.version),
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
                self._count_death(progress=self.stream.num_bytes > before)
            except DivergedError:
                message = "the replica was lost, and another one answers differently; use temperature 0 or a seed"
                raise RefusalError(502, message, "stream_interrupted") from None
            finally:
                slot.give_back(completed=completed)
            resumed = True

    def _follow_alias(self, request: ModelRequest) -> None:
        """Resolve the name again if its version is gone and nothing of the answer was sent."""
        table = self.context.table
        if not self.stream.streaming and table.routes is not None and self.record.version not in table.routes.versions:
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
