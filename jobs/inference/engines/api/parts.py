"""An answer as parts: the text that can be shown and the tokens that it came of; several answers merged as they grow."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ropewalk.jobs.inference.engines.api.asked import Choice
from ropewalk.jobs.inference.engines.api.text import TextStream, Vocabulary
from ropewalk.jobs.inference.engines.sampler import Drawn, Ended, Sampler


@dataclass(frozen=True)
class Part:
    """A step of an answer: text, or its end."""

    index: int
    text: str
    tokens: Sequence[Drawn]
    ended: Ended | None = None
    num_tokens: int = 0  # of the answer until here


async def parts_of(choice: Choice, sampler: Sampler, vocabulary: Vocabulary) -> AsyncGenerator[Part]:
    """The parts of one answer, in order; the last one, without text, says how it ended.

    The parts that came of the tokens that another process has drawn are left out.
    """
    text, held, count = TextStream(vocabulary, choice.stops, choice.prompt), list[Drawn](), len(choice.drawn)
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
            held.append(drawn)
            piece = text.push(drawn.token, drawn.text) if not is_end else text.end()
            shown = piece.text
            if ended is not None and not is_end and not piece.stopped:
                shown += (piece := text.end()).text
            if piece.stopped:
                ended = "stop"
            if shown or (ended is not None and not is_end and held):
                yield Part(choice.index, shown, tuple(held if not is_end else held[:-1]), None, count)
                held = [drawn] if is_end else []
            if ended is not None:
                break
    yield Part(choice.index, "", tuple(held), ended or "stop", count)


async def merged(choices: Sequence[Choice], sampler: Sampler, vocabulary: Vocabulary) -> AsyncGenerator[Part]:
    """The parts of several answers, each as soon as it is there."""
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
        except Exception as error:  # told to whoever reads the queue
            queue.put_nowait(error)
        queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
