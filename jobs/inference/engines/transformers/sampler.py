"""Sample tokens with a transformers model: one thread computes, and slots take turns token by token.

Computing requests side by side rounds differently from computing them alone, and could change an answer. Here each forward pass
is of one request: an answer is that of the request alone, whatever runs beside it.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.sampler import Drawn, Sampling
from ropewalk.jobs.inference.engines.transformers.constraint import Constraints
from ropewalk.jobs.inference.engines.transformers.decoding import Answer, likeliest
from ropewalk.jobs.inference.engines.transformers.plugin import TransformersEngine
from ropewalk.jobs.inference.scoring.generate import end_tokens
from ropewalk.jobs.inference.scoring.open_model import OpenModel

log = logging.getLogger(__name__)

Event = Drawn | Exception | None


@dataclass(eq=False)
class Job:
    """A request in the queue of the thread."""

    answer: Answer
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    gone: bool = False  # abandoned by its client

    def tell(self, event: Event) -> None:
        """Pass an event to the waiting request; a closed loop is ignored."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class TransformersSampler:
    """The sampler of the reference engine."""

    def __init__(self, opened: OpenModel, *, slots: int, context: int | None) -> None:
        self._opened, self.slots = opened, slots
        self.context = min(context or opened.max_length, opened.max_length)
        self.ends = frozenset(end_tokens(opened))
        self.vocabulary = int(opened.model.get_input_embeddings().num_embeddings)
        self._constraints = Constraints(opened.tokenizer, self.vocabulary, self.ends)
        self.capabilities = TransformersEngine().capabilities
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    async def draw(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Drawn]:
        """Yield the tokens after the prompt; closing the generator frees the slot after the current pass."""
        schema = sampling.json_schema
        constraint = await asyncio.to_thread(self._constraints.begin, schema) if schema is not None else None
        answer = Answer(self._opened.model, prompt, sampling, self.ends, constraint=constraint)
        job = Job(answer, asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            while (event := await job.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            job.gone = True
            with self._changed:
                self._changed.notify()

    async def prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[Drawn]:
        """Return the log-probability of each token of a prompt after those before it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Drawn]] = loop.create_future()

        def call() -> None:
            result: list[Drawn] | ApiError
            try:
                result = _prompt_logprobs(self._opened.model, prompt, top)
            except Exception as error:  # above all out of memory: a whole prompt has many logits
                result = _engine_error(error)
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result)

        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return await done

    def load(self) -> tuple[int, int]:
        return len(self._active), len(self._waiting)

    def close(self) -> None:
        """End the thread after its current pass."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        """Exit the process if the thread fails: nothing else would answer, and the replica is restarted."""
        try:
            self._decode()
        except BaseException:
            log.exception("the decoding thread failed")
            os._exit(1)

    def _decode(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._active or self._waiting or self._calls)
                if self._closed:
                    return
                self._admit()
                calls = [self._calls.popleft() for _ in range(len(self._calls))]
            for call in calls:
                call()
            for job in list(self._active):
                self._turn(job)

    def _admit(self) -> None:
        """Free the slots of abandoned requests, and assign them to those that have waited longest."""
        self._active = [job for job in self._active if not job.gone]
        while self._waiting and len(self._active) < self.slots:
            if not (job := self._waiting.popleft()).gone:
                self._active.append(job)

    def _turn(self, job: Job) -> None:
        """Sample one token of a request; a failure ends only that request."""
        if job.gone:
            return
        try:
            drawn = job.answer.step()
        except ApiError as error:
            job.tell(error)
            self._active.remove(job)
            return
        except (RuntimeError, ValueError, IndexError) as error:  # raised by torch: out of memory, or invalid tokens
            job.tell(_engine_error(error))
            self._active.remove(job)
            return
        job.tell(drawn)
        if drawn.ended is not None:
            job.tell(None)
            self._active.remove(job)


def _engine_error(error: Exception) -> ApiError:
    return ApiError(f"the model failed: {error}", status=500, code="engine_failed")


def _settle(done: "asyncio.Future[list[Drawn]]", result: list[Drawn] | ApiError) -> None:
    if done.done():
        return
    if isinstance(result, ApiError):
        done.set_exception(result)
    else:
        done.set_result(result)


@torch.no_grad()
def _prompt_logprobs(model: Any, prompt: Sequence[int], top: int) -> list[Drawn]:
    logits = model(input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=False).logits[0].float()
    drawn = [Drawn(prompt[0])]
    for token, each in zip(prompt[1:], logits[:-1].log_softmax(1), strict=True):
        drawn.append(Drawn(token, float(each[token]), likeliest(each, top)))
    return drawn
