"""One attempt to have a request answered, or what is left of its answer, by one replica."""

import time
from typing import Any, Protocol

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.asked import CHAT, COMPLETIONS, Asked
from ropewalk.jobs.serving.serve.gateway.exchange.continuation import (
    Way,
    by_ids,
    first_body,
    from_body,
    ids_values,
    limit_of,
    model_for,
    spliced,
    wants_usage,
    way_of,
)
from ropewalk.jobs.serving.serve.gateway.exchange.readers import Pass, Reader, Replay, Rest
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock
from ropewalk.jobs.serving.serve.gateway.exchange.sent import Sent
from ropewalk.jobs.serving.serve.gateway.http.answers import RefusalError
from ropewalk.jobs.serving.serve.gateway.http.events import DONE_EVENT, as_event
from ropewalk.jobs.serving.serve.gateway.http.upstream import BrokenError, Reply, Upstreams
from ropewalk.jobs.serving.serve.routes import Replica

SSE = b"text/event-stream"
_AWAY = (502, 503, 504)


class NotHereError(Exception):
    """A replica cannot answer now: it loads, or it has failed."""


class Client(Protocol):
    """For whom a leg is: what was asked, what was sent, and how more is sent."""

    clock: Clock
    streaming: bool
    seed: int
    cannot_continue: bool
    failures: int

    def sent(self) -> Sent:
        """What of a stream was sent."""
        ...

    def began_upstream(self, transport: Any) -> None:
        """The engine is asked by this connection."""

    def begin_stream(self, reply: Reply) -> None:
        """Send the head of a stream."""

    def send_piece(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        """Send events of a stream, and note what tokens they came of."""

    def end_stream(self) -> None:
        """Send the end of a stream."""

    def send_answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send an answer that is no stream."""


class Leg:
    """One replica, asked once."""

    def __init__(
        self, client: Client, asked: Asked, replica: Replica, upstreams: Upstreams, *, version: str, limit_bytes: int
    ) -> None:
        self._client, self._asked, self._replica, self._upstreams = client, asked, replica, upstreams
        self._way = way_of(replica.engine)
        self._model = model_for(replica, asked, version)
        self._limit_bytes = limit_bytes
        self._reader: Reader | None = None
        self._reply = Reply(0, b"")
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._continues = False

    async def run(self) -> None:
        """Ask, and hand on what is answered. Returns once the client's answer is complete.

        Raises UnreachableError, NotHereError or BrokenError (another replica must go on), DivergedError, RefusalError.
        """
        path, body = self._asked.path, first_body(self._asked, self._way, self._model, self._client.seed)
        reader: Reader = Pass(keep_ids=bool(self._asked.values.get("return_token_ids")))
        if self._client.streaming:
            sent = self._client.sent()
            if sent.done or sent.failed or self._end_here(sent):
                self._client.end_stream()
                return
            if sent.events:
                path, body, reader = self._continued(sent, reader)
                self._continues = True
        self._stream = reader
        try:
            await self._upstreams.ask(self._replica.url, path, body, self, on_connection=self._client.began_upstream)
        except BrokenError:
            if self._reader is None or not self._reader.ended:
                raise
        if self._reader is None:
            self._hand_on_whole()
        elif not self._reader.ended and path in (CHAT, COMPLETIONS):
            raise BrokenError("the stream ended before its end was said")
        else:
            self._client.end_stream()

    def _continued(self, sent: Sent, plain: Reader) -> tuple[str, bytes, Reader]:
        asked, model, seed = self._asked, self._model, self._client.seed
        if self._way is Way.FROM and not self._client.cannot_continue:
            return asked.path, from_body(asked, sent, model, seed), plain
        if self._way is Way.IDS and by_ids(asked, sent):
            return COMPLETIONS, orjson.dumps(ids_values(asked, sent, model, seed)), Rest(asked, sent)
        drawn = {} if self._way is Way.REPLAY or asked.greedy or asked.values.get("seed") is not None else {"seed": seed}
        return asked.path, spliced(asked, drawn, model), Replay(sent)

    def _end_here(self, sent: Sent) -> bool:
        """Whether all tokens were sent: what is missing is known without an engine, and is sent."""
        out = b""
        limit = limit_of(self._asked)
        if self._way is Way.IDS and not sent.finished and sent.token_ids and limit == len(sent.token_ids):
            out = Rest(self._asked, sent).last("length")
        elif not sent.finished:
            return False
        if wants_usage(self._asked) and not sent.usage_sent:
            if sent.token_ids is None or not sent.prompt_ids or sent.first is None:
                return False
            out += as_event(Rest(self._asked, sent).usage())
        self._client.send_piece(out + DONE_EVENT, [], None)
        return True

    # --- what arrives

    def on_reply(self, reply: Reply) -> None:
        """The engine begins to answer. Raises NotHereError where another one should."""
        self._reply = reply
        if reply.status in _AWAY:
            raise NotHereError(f"it answered with {reply.status}")
        if reply.status >= 500 and self._client.failures == 0:
            self._client.failures += 1
            raise NotHereError(f"it answered with {reply.status}")
        if reply.status == 200 and reply.content_type.startswith(SSE):
            self._reader = self._stream
        elif self._client.streaming and reply.status == 200:
            raise BrokenError("it answered a stream with something else")

    def on_data(self, data: bytes) -> None:
        """A piece of the answer."""
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
                self._client.clock.replied()
                self._client.begin_stream(self._reply)
            self._client.send_piece(out, reader.prompt_ids, reader.token_ids if reader.told_ids else None)
            self._client.clock.handed_on(began)

    def _hand_on_whole(self) -> None:
        status, content_type = self._reply
        body = b"".join(self._parts)
        if not self._client.streaming:
            self._client.clock.replied()
            self._client.send_answer(status, content_type or b"application/json", body)
            self._client.clock.handed_on(time.monotonic())
            return
        if self._continues and not self._client.cannot_continue:
            self._client.cannot_continue = True  # the engine says so: the next one is asked from the beginning
            raise NotHereError(f"it does not continue: {body[:200].decode(errors='replace')}")
        raise RefusalError(502, "the replica was lost, and no other one goes on with its answer", "stream_interrupted")
