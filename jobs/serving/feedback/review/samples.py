"""Second answers, sampled from the endpoint for the prompts a reviewer is about to see; masked and stored."""

import logging
import queue
import secrets
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.parse import answer_of
from ropewalk.jobs.serving.feedback.read import CapturedExchange
from ropewalk.jobs.serving.feedback.records import FOLDER, samples_store
from ropewalk.jobs.serving.feedback.review.items import Side
from ropewalk.jobs.serving.feedback.store import Writer
from ropewalk.jobs.serving.feedback.training_data import prompt_of

log = logging.getLogger(__name__)

TEMPERATURE = 0.8  # minimum: greedy sampling would repeat the first answer
TIMEOUT_SECONDS = 120.0
REUSED_KEYS = ("max_tokens", "max_completion_tokens", "stop", "top_p", "response_format", "tool_choice")

AskEndpoint = Callable[[CapturedExchange], Any]  # returns a choice in the format of the API


def known_samples(run: Path) -> tuple[dict[str, Side], dict[str, Side]]:
    """Return the oldest sample of each exchange by exchange id, and all samples by their own id."""
    first: dict[str, Side] = {}
    every: dict[str, Side] = {}
    for row in samples_store(run / FOLDER).read().to_pylist():
        side = Side(row["id"], row["version"], orjson.loads(row["answer"]))
        every[side.id] = side
        first.setdefault(row["exchange"], side)
    return first, every


def endpoint(address: str, token: str | None, tls: ssl.SSLContext | None = None) -> AskEndpoint:
    """Return a function that asks an OpenAI-compatible endpoint, without being captured there."""

    def ask(exchange: CapturedExchange) -> Any:
        chat = isinstance(exchange.messages, list)
        body: dict[str, Any] = {name: exchange.sampling[name] for name in REUSED_KEYS if exchange.sampling.get(name) is not None}
        temperature = exchange.sampling.get("temperature")
        body |= {"model": exchange.alias, "store": False, "seed": secrets.randbelow(2**31)}
        body["temperature"] = max(TEMPERATURE, temperature if isinstance(temperature, int | float) else TEMPERATURE)
        body |= {"messages" if chat else "prompt": prompt_of(exchange), **({"tools": exchange.tools} if exchange.tools else {})}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        url = f"{address.rstrip('/')}/v1/{'chat/completions' if chat else 'completions'}"
        request = urllib.request.Request(url, orjson.dumps(body), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=tls) as answer:
            choices = answer_of(answer.read()).get("choices") or [None]
        return choices[0]

    return ask


class Sampler:
    """Samples second answers in a thread, ahead of the reviewer."""

    def __init__(self, run: Path, ask: AskEndpoint, kinds: Sequence[Kind]) -> None:
        self._ask, self._kinds = ask, kinds
        self._writer = Writer(samples_store(run / FOLDER), 1 << 20, 3600.0)
        self.samples, _ = known_samples(run)
        self.error = ""  # of the newest request, if it failed
        self._pending: set[str] = set()
        self._queue: queue.SimpleQueue[CapturedExchange | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._draw_all, daemon=True)
        self._thread.start()

    def want(self, exchanges: Iterable[CapturedExchange]) -> None:
        """Request samples for these exchanges, in order, unless they exist or are pending."""
        for exchange in exchanges:
            if exchange.id not in self.samples and exchange.id not in self._pending:
                self._pending.add(exchange.id)
                self._queue.put(exchange)

    def wait(self, number: str, seconds: float) -> Side | None:
        """Return the second answer to an exchange, waiting up to `seconds`; None if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: number in self.samples or number not in self._pending, seconds)
        return self.samples.get(number)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(1.0)
        self._writer.roll()

    def _draw_all(self) -> None:
        while (exchange := self._queue.get()) is not None:
            side = None
            try:
                side = self._draw(exchange)
            except (OSError, ValueError) as error:
                self.error = str(error)
                log.warning("review: the endpoint gave no second answer: %s", error)
            with self._changed:
                if side:
                    self.samples[exchange.id] = side
                self._pending.discard(exchange.id)
                self._changed.notify_all()

    def _draw(self, exchange: CapturedExchange) -> Side | None:
        choice = self._ask(exchange)
        content = (choice or {}).get("text") or (choice or {}).get("message")
        if not content:
            return None
        (masked,), _ = mask([content], self._kinds)
        answer = masked if isinstance(masked, str) else [{"role": "assistant", **masked}]
        side = Side(f"sample-{secrets.token_hex(8)}", exchange.alias, answer)  # the version that the alias names now
        row = {"id": side.id, "time": time.time(), "exchange": exchange.id, "exchange_time": exchange.time}
        self._writer.append([{**row, "version": side.version, "answer": orjson.dumps(answer).decode()}])
        return side
