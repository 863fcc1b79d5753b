"""One attempt to get an answer, or the rest of it, from one replica."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import orjson
from aiohttp import web

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.exchange.client_stream import ClientStream
from ropewalk.jobs.serving.serve.gateway.exchange.continuation import (
    METHODS,
    Method,
    can_continue_by_ids,
    continue_from_body,
    initial_body,
    max_tokens_of,
    model_for,
    token_ids_body,
    wants_usage,
    with_keys,
)
from ropewalk.jobs.serving.serve.gateway.exchange.events import DONE_EVENT, SentStream, as_event
from ropewalk.jobs.serving.serve.gateway.exchange.readers import CompletionReader, PassThrough, Reader, ReplayReader
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, ModelRequest
from ropewalk.jobs.serving.serve.gateway.upstream import BrokenError, Reply, Upstreams
from ropewalk.jobs.serving.serve.routes import Replica

SSE = "text/event-stream"
_AWAY = (502, 503, 504)
_END_SECONDS = 1.0  # for an engine to end its answer after its last event, so that the connection can be reused


class UnavailableError(Exception):
    """The replica cannot answer now: it is loading or has failed."""


class UpstreamAttempt:
    """One request to one replica."""

    def __init__(
        self,
        client: ClientStream,
        request: ModelRequest,
        replica: Replica,
        version: str,
        *,
        upstreams: Upstreams,
        limit_bytes: int,
    ) -> None:
        self._client, self._request, self._replica, self._upstreams = client, request, replica, upstreams
        self._method = METHODS.get(replica.engine, Method.REPLAY)
        self._model = model_for(replica, request, version)
        self._limit_bytes = limit_bytes

    async def run(self) -> web.StreamResponse:
        """Send the request, forward the answer, and return the client's response once it is complete.

        Raises UnreachableError, UnavailableError or BrokenError (another replica must continue), DivergedError, RefusalError.
        """
        client, path, continues = self._client, self._request.path, False
        body = initial_body(self._request, self._method, self._model, client.seed)
        reader: Reader = PassThrough(keep_ids=bool(self._request.values.get("return_token_ids")))
        if client.streaming:
            sent = client.sent_stream()
            rest = b"" if sent.done or sent.failed else self._rest_without_engine(sent)
            if rest is not None:
                return await client.end_stream(rest, [], None)
            if sent.events:
                path, body, reader = self._continuation(sent, reader)
                continues = True
        async with self._upstreams.ask(self._replica.url, path, body) as reply:
            self._check(reply)
            if reply.status == 200 and reply.content_type.startswith(SSE):
                return await self._forward_stream(reply, reader, needs_end=path in (CHAT, COMPLETIONS))
            return await self._forward_whole(reply, continues=continues)

    def _check(self, reply: Reply) -> None:
        """Raise UnavailableError if another replica should be tried."""
        if reply.status in _AWAY:
            raise UnavailableError(f"status {reply.status}")
        if reply.status >= 500 and self._client.failures == 0:
            self._client.failures += 1
            raise UnavailableError(f"status {reply.status}")

    async def _forward_stream(self, reply: Reply, reader: Reader, *, needs_end: bool) -> web.StreamResponse:
        client = self._client
        pieces = reply.pieces()
        async for data in pieces:
            began = time.monotonic()
            out = reader.feed(data)
            if not out:
                continue
            if not client.streaming:
                client.clock.mark_replied()
                await client.begin_stream(reply)
            token_ids = reader.token_ids if reader.has_token_ids else None
            client.clock.mark_forwarded(began)
            if reader.ended:
                response = await client.end_stream(out, reader.prompt_ids, token_ids)
                await _read_end(pieces)
                return response
            await client.send_piece(out, reader.prompt_ids, token_ids)
        if needs_end or not client.streaming:
            raise BrokenError("the stream ended without its end marker")
        return await client.end_stream(b"", [], None)

    async def _forward_whole(self, reply: Reply, *, continues: bool) -> web.StreamResponse:
        client = self._client
        if client.streaming and reply.status == 200:
            raise BrokenError("the response to a streaming request is not a stream")
        parts: list[bytes] = []
        num_bytes = 0
        async for data in reply.pieces():
            parts.append(data)
            if (num_bytes := num_bytes + len(data)) > self._limit_bytes:
                raise RefusalError(502, "the answer is longer than max_answer_bytes", "answer_too_long")
        body = b"".join(parts)
        if not client.streaming:
            client.clock.mark_replied()
            client.clock.mark_forwarded(time.monotonic())
            return await client.send_whole(reply.status, reply.content_type or "application/json", body)
        if continues and not client.cannot_continue:
            client.cannot_continue = True  # the next attempt starts from the beginning
            raise UnavailableError(f"it cannot continue the answer (status {reply.status})")
        raise RefusalError(502, "the replica was lost, and no other one can continue its answer", "stream_interrupted")

    def _continuation(self, sent: SentStream, plain: Reader) -> tuple[str, bytes, Reader]:
        request, model, seed = self._request, self._model, self._client.seed
        if self._method is Method.CONTINUE_FROM and not self._client.cannot_continue:
            return request.path, continue_from_body(request, sent, model, seed), plain
        if self._method is Method.BY_IDS and can_continue_by_ids(request, sent):
            return COMPLETIONS, orjson.dumps(token_ids_body(request, sent, model, seed)), CompletionReader(request, sent)
        seed_key = (
            {} if self._method is Method.REPLAY or request.greedy or request.values.get("seed") is not None else {"seed": seed}
        )
        return request.path, with_keys(request, seed_key, model), ReplayReader(sent)

    def _rest_without_engine(self, sent: SentStream) -> bytes | None:
        """Return the last events if all tokens were sent already, else None."""
        out = b""
        max_tokens = max_tokens_of(self._request)
        if self._method is Method.BY_IDS and not sent.finished and sent.token_ids and max_tokens == len(sent.token_ids):
            out = CompletionReader(self._request, sent).last("length")
        elif not sent.finished:
            return None
        if wants_usage(self._request) and not sent.usage_sent:
            if sent.token_ids is None or not sent.prompt_ids or sent.first is None:
                return None
            out += as_event(CompletionReader(self._request, sent).usage())
        return out + DONE_EVENT


async def _read_end(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the last event."""
    with suppress(BrokenError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in pieces:
                pass
