"""Send an answer to a client, whole or as a stream, and abort it as soon as the client disconnects."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ropewalk.jobs.inference.engines.api.chunks import DONE, Chunks, event
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.generation_request import GenerationRequest
from ropewalk.jobs.inference.engines.api.parts import Part, merge_parts
from ropewalk.jobs.inference.engines.api.text import Vocabulary
from ropewalk.jobs.inference.engines.sampler import Drawn, Sampler

log = logging.getLogger(__name__)

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Answering(Response):
    """The response to one request."""

    def __init__(self, request: GenerationRequest, sampler: Sampler, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._request, self._sampler, self._vocabulary = request, sampler, vocabulary
        self._chunks = Chunks(request, vocabulary)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; when the client disconnects, stop at once and free the slots."""
        work = asyncio.ensure_future(self._stream(send) if self._request.stream else self._whole(send))
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnected.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _whole(self, send: Send) -> None:
        answers: list[list[Part]] = [[] for _ in self._request.choices]
        try:
            echoed = await self._echoed_tokens()
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
                    if not begun:  # only once there is a part: a refusal has a status of its own
                        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                        begun = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            if not begun:
                await send_error(error, send)
                return
            log.warning("an answer was interrupted: %s (%s)", error.status, error.code)
            await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[bytes]:
        request, counts, call_texts = self._request, dict[int, int](), dict[int, str]()
        echoed = await self._echoed_tokens()
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                begins = part.index not in counts and not request.started
                if begins and (first := self._chunks.first(part.index, echoed[part.index] if echoed else None)):
                    yield first
                counts[part.index] = part.num_tokens
                if not request.calls_tool:
                    yield self._chunks.part(part)
                elif part.ended is None:
                    call_texts[part.index] = call_texts.get(part.index, "") + part.text
                else:
                    yield self._chunks.call(part.index, call_texts.get(part.index, ""))
                    yield self._chunks.end_of_call(part)
        if request.include_usage:
            yield self._chunks.usage(sum(counts.values()))
        yield DONE

    async def _parts(self) -> AsyncGenerator[Part]:
        """Yield the parts of all answers; if only the prompt is echoed, only their ends."""
        if all(choice.sampling.max_tokens == 0 for choice in self._request.choices):
            for choice in self._request.choices:
                yield Part(choice.index, "", (), "length")
            return
        async with aclosing(merge_parts(self._request.choices, self._sampler, self._vocabulary)) as parts:
            async for part in parts:
                yield part

    async def _echoed_tokens(self) -> list[list[Drawn]]:
        """Return the tokens of echoed prompts with their log-probabilities."""
        if not self._request.echo or self._request.logprobs is None:
            return []
        tokens_of_prompt: dict[tuple[int, ...], list[Drawn]] = {}
        for choice in self._request.choices:
            if choice.prompt not in tokens_of_prompt:
                tokens_of_prompt[choice.prompt] = await self._sampler.prompt_logprobs(choice.prompt, self._request.logprobs)
        return [tokens_of_prompt[choice.prompt] for choice in self._request.choices]


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    import orjson

    body = orjson.dumps(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
