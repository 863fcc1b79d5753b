"""An answer in parts: visible text with its tokens; parts of several answers merged as they arrive."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ropewalk.jobs.inference.engines.api.generation_request import Choice
from ropewalk.jobs.inference.engines.api.text import TextStream, Vocabulary
from ropewalk.jobs.inference.engines.sampler import Drawn, Ended, Sampler


@dataclass(frozen=True)
class Part:
    """A step of an answer: text, or its end."""

    index: int
    text: str
    tokens: Sequence[Drawn]
    ended: Ended | None = None
    num_tokens: int = 0  # of the answer so far


async def parts_of(choice: Choice, sampler: Sampler, vocabulary: Vocabulary) -> AsyncGenerator[Part]:
    """Yield the parts of one answer in order; the last one, without text, has the finish reason.

    Parts of tokens that another process sampled are left out.
    """
    text, pending, count = TextStream(vocabulary, choice.stops, choice.prompt), list[Drawn](), len(choice.drawn)
    ended: Ended | None = None
    for token in choice.drawn:
        ended = "stop" if (token in sampler.ends and choice.sampling.end) or text.push(token).stopped else ended
    if ended is None and count >= choice.sampling.max_tokens:
        ended = "length"
    if ended is not None:
        yield Part(choice.index, "", (), ended, count)
        return
    async with aclosing(sampler.draw((*choice.prompt, *choice.drawn), choice.sampling)) as drawing:
        async for drawn in drawing:
            count, ended = count + 1, drawn.ended
            is_end = ended == "stop" and (drawn.token in sampler.ends or drawn.text == "")
            pending.append(drawn)
            piece = text.push(drawn.token, drawn.text) if not is_end else text.end()
            visible = piece.text
            if ended is not None and not is_end and not piece.stopped:
                visible += (piece := text.end()).text
            if piece.stopped:
                ended = "stop"
            if visible or (ended is not None and not is_end and pending):
                yield Part(choice.index, visible, tuple(pending if not is_end else pending[:-1]), None, count)
                pending = [drawn] if is_end else []
            if ended is not None:
                break
    yield Part(choice.index, "", tuple(pending), ended or "stop", count)


async def merge_parts(choices: Sequence[Choice], sampler: Sampler, vocabulary: Vocabulary) -> AsyncGenerator[Part]:
    """Yield the parts of several answers, each as soon as it is available."""
    if len(choices) == 1:
        async with aclosing(parts_of(choices[0], sampler, vocabulary)) as parts:
            async for part in parts:
                yield part
        return
    queue: asyncio.Queue[Part | BaseException | None] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async with aclosing(parts_of(choice, sampler, vocabulary)) as parts:
                async for part in parts:
                    queue.put_nowait(part)
        except Exception as error:  # raised by the reader of the queue
            queue.put_nowait(error)
        queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
