"""One attempt to get an answer, or the rest of it, from one replica."""

import time
from typing import Any, Protocol

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.continuation import (
    Method,
    can_continue_by_ids,
    continue_from_body,
    initial_body,
    max_tokens_of,
    method_of,
    model_for,
    token_ids_body,
    wants_usage,
    with_keys,
)
from ropewalk.jobs.serving.serve.gateway.exchange.readers import CompletionReader, PassThrough, Reader, ReplayReader
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, ModelRequest
from ropewalk.jobs.serving.serve.gateway.exchange.sent import SentStream
from ropewalk.jobs.serving.serve.gateway.http.answers import RefusalError
from ropewalk.jobs.serving.serve.gateway.http.events import DONE_EVENT, as_event
from ropewalk.jobs.serving.serve.gateway.http.upstream import BrokenError, Reply, Upstreams
from ropewalk.jobs.serving.serve.routes import Replica

SSE = b"text/event-stream"
_AWAY = (502, 503, 504)


class UnavailableError(Exception):
    """The replica cannot answer now: it is loading or has failed."""


class ClientStream(Protocol):
    """The client stream an upstream attempt writes to."""

    clock: Clock
    streaming: bool
    seed: int
    cannot_continue: bool
    failures: int

    def sent_stream(self) -> SentStream:
        """Return the part of the stream that was sent."""
        ...

    def set_upstream(self, transport: Any) -> None:
        """Remember the connection to the engine."""

    def begin_stream(self, reply: Reply) -> None:
        """Send the response head of a stream."""

    def send_piece(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        """Send events of a stream, and record their tokens."""

    def end_stream(self) -> None:
        """Send the end of a stream."""

    def send_answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send a complete answer that is not a stream."""


class UpstreamAttempt:
    """One request to one replica."""

    def __init__(
        self,
        client: ClientStream,
        request: ModelRequest,
        replica: Replica,
        upstreams: Upstreams,
        *,
        version: str,
        limit_bytes: int,
    ) -> None:
        self._client, self._request, self._replica, self._upstreams = client, request, replica, upstreams
        self._method = method_of(replica.engine)
        self._model = model_for(replica, request, version)
        self._limit_bytes = limit_bytes
        self._reader: Reader | None = None
        self._reply = Reply(0, b"")
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._continues = False

    async def run(self) -> None:
        """Send the request and forward the answer. Returns once the client's answer is complete.

        Raises UnreachableError, UnavailableError or BrokenError (another replica must continue), DivergedError, RefusalError.
        """
        path, body = self._request.path, initial_body(self._request, self._method, self._model, self._client.seed)
        reader: Reader = PassThrough(keep_ids=bool(self._request.values.get("return_token_ids")))
        if self._client.streaming:
            sent = self._client.sent_stream()
            if sent.done or sent.failed or self._complete_locally(sent):
                self._client.end_stream()
                return
            if sent.events:
                path, body, reader = self._continuation(sent, reader)
                self._continues = True
        self._stream = reader
        try:
            await self._upstreams.ask(self._replica.url, path, body, self, on_connection=self._client.set_upstream)
        except BrokenError:
            if self._reader is None or not self._reader.ended:
                raise
        if self._reader is None:
            self._forward_whole()
        elif not self._reader.ended and path in (CHAT, COMPLETIONS):
            raise BrokenError("the stream ended without its end marker")
        else:
            self._client.end_stream()

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

    def _complete_locally(self, sent: SentStream) -> bool:
        """Return True if all tokens were sent already; what is missing needs no engine and is sent here."""
        out = b""
        max_tokens = max_tokens_of(self._request)
        if self._method is Method.BY_IDS and not sent.finished and sent.token_ids and max_tokens == len(sent.token_ids):
            out = CompletionReader(self._request, sent).last("length")
        elif not sent.finished:
            return False
        if wants_usage(self._request) and not sent.usage_sent:
            if sent.token_ids is None or not sent.prompt_ids or sent.first is None:
                return False
            out += as_event(CompletionReader(self._request, sent).usage())
        self._client.send_piece(out + DONE_EVENT, [], None)
        return True

    # --- events of the engine's response

    def on_reply(self, reply: Reply) -> None:
        """Handle the response head. Raises UnavailableError if another replica should be tried."""
        self._reply = reply
        if reply.status in _AWAY:
            raise UnavailableError(f"status {reply.status}")
        if reply.status >= 500 and self._client.failures == 0:
            self._client.failures += 1
            raise UnavailableError(f"status {reply.status}")
        if reply.status == 200 and reply.content_type.startswith(SSE):
            self._reader = self._stream
        elif self._client.streaming and reply.status == 200:
            raise BrokenError("the response to a streaming request is not a stream")

    def on_data(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self._parts.append(data)
            self._num_bytes += len(data)
            if self._num_bytes > self._limit_bytes:
                raise RefusalError(502, "the answer is longer than max_answer_bytes", "answer_too_long")
            return
        began = time.monotonic()
        out = reader.feed(data)
        if out:
            if not self._client.streaming:
                self._client.clock.mark_replied()
                self._client.begin_stream(self._reply)
            self._client.send_piece(out, reader.prompt_ids, reader.token_ids if reader.has_token_ids else None)
            self._client.clock.mark_forwarded(began)

    def _forward_whole(self) -> None:
        status, content_type = self._reply
        body = b"".join(self._parts)
        if not self._client.streaming:
            self._client.clock.mark_replied()
            self._client.send_answer(status, content_type or b"application/json", body)
            self._client.clock.mark_forwarded(time.monotonic())
            return
        if self._continues and not self._client.cannot_continue:
            self._client.cannot_continue = True  # the next attempt starts from the beginning
            raise UnavailableError(f"it cannot continue the answer: {body[:200].decode(errors='replace')}")
        raise RefusalError(502, "the replica was lost, and no other one can continue its answer", "stream_interrupted")
