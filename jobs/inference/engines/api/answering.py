"""An answer on its way to a client: as a whole or as a stream, given up as soon as the client hangs up."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ropewalk.jobs.inference.engines.api.asked import Asked
from ropewalk.jobs.inference.engines.api.chunks import DONE, Chunks, event
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.parts import Part, merged
from ropewalk.jobs.inference.engines.api.text import Vocabulary
from ropewalk.jobs.inference.engines.sampler import Drawn, Sampler

log = logging.getLogger(__name__)

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Answering(Response):
    """Answers one request."""

    def __init__(self, asked: Asked, sampler: Sampler, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._asked, self._sampler, self._vocabulary = asked, sampler, vocabulary
        self._chunks = Chunks(asked, vocabulary)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; end at once, and free its slots, when the client hangs up."""
        work = asyncio.ensure_future(self._stream(send) if self._asked.stream else self._whole(send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _whole(self, send: Send) -> None:
        answers: list[list[Part]] = [[] for _ in self._asked.choices]
        try:
            echoed = await self._echoed()
            async with aclosing(self._parts()) as parts:
                async for part in parts:
                    answers[part.index].append(part)
            body, status = self._chunks.whole(answers, echoed), 200
        except ApiError as error:
            await send_error(error, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        begun = False
        try:
            async with aclosing(self._events()) as events:
                async for chunk in events:
                    if not begun:  # not before the first part is there: what is refused has a status of its own
                        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                        begun = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            if not begun:
                await send_error(error, send)
                return
            log.warning("an answer broke off: %s", error)
            await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[bytes]:
        asked, counts, called = self._asked, dict[int, int](), dict[int, str]()
        echoed = await self._echoed()
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                begins = part.index not in counts and not asked.started
                if begins and (first := self._chunks.first(part.index, echoed[part.index] if echoed else None)):
                    yield first
                counts[part.index] = part.num_tokens
                if not asked.calls_tool:
                    yield self._chunks.part(part)
                elif part.ended is None:
                    called[part.index] = called.get(part.index, "") + part.text
                else:
                    yield self._chunks.call(part.index, called.get(part.index, ""))
                    yield self._chunks.end_of_call(part)
        if asked.include_usage:
            yield self._chunks.usage(sum(counts.values()))
        yield DONE

    async def _parts(self) -> AsyncGenerator[Part]:
        """The parts of all answers; of one without a token, since only its prompt is echoed, its end."""
        if all(choice.sampling.max_tokens == 0 for choice in self._asked.choices):
            for choice in self._asked.choices:
                yield Part(choice.index, "", (), "length")
            return
        async with aclosing(merged(self._asked.choices, self._sampler, self._vocabulary)) as parts:
            async for part in parts:
                yield part

    async def _echoed(self) -> list[list[Drawn]]:
        """The tokens of prompts that are echoed with their log-probabilities."""
        if not self._asked.echo or self._asked.logprobs is None:
            return []
        found: dict[tuple[int, ...], list[Drawn]] = {}
        for choice in self._asked.choices:
            if choice.prompt not in found:
                found[choice.prompt] = await self._sampler.prompt_logprobs(choice.prompt, self._asked.logprobs)
        return [found[choice.prompt] for choice in self._asked.choices]


async def send_error(error: ApiError, send: Send) -> None:
    """Answer by an error."""
    import orjson

    body = orjson.dumps(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _hung_up(receive: Receive) -> None:
    """Wait until the client is gone."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
