"""Second answers, drawn from the endpoint for the prompts that a reviewer is about to see, masked and kept."""

import logging
import queue
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.parse import answer_of
from ropewalk.jobs.serving.feedback.read import Captured
from ropewalk.jobs.serving.feedback.records import FOLDER
from ropewalk.jobs.serving.feedback.review.items import Side
from ropewalk.jobs.serving.feedback.store import Store, Writer
from ropewalk.jobs.serving.feedback.training_data import prompt_of

log = logging.getLogger(__name__)

TEMPERATURE = 0.8  # at least: a greedy answer would be drawn again word for word
TIMEOUT_SECONDS = 120.0
SAMPLES = pa.schema(
    [("id", pa.string()), ("time", pa.float64()), ("exchange", pa.string()), ("version", pa.string()), ("answer", pa.string())]
)
KEPT = ("max_tokens", "max_completion_tokens", "stop", "top_p", "response_format", "tool_choice")

Ask = Callable[[Captured], Any]  # a choice, as the API has it


def samples_store(run: Path) -> Store:
    """Second answers of a run."""
    return Store(run / FOLDER / "samples", SAMPLES)


def known_samples(run: Path) -> tuple[dict[str, Side], dict[str, Side]]:
    """The oldest sample of each exchange, by exchange; and all of them by their own ids."""
    first: dict[str, Side] = {}
    every: dict[str, Side] = {}
    for row in samples_store(run).read().to_pylist():
        side = Side(row["id"], row["version"], orjson.loads(row["answer"]))
        every[side.id] = side
        first.setdefault(row["exchange"], side)
    return first, every


def endpoint(address: str, token: str | None) -> Ask:
    """Ask an endpoint that speaks the OpenAI API; the answer is not captured there."""

    def ask(one: Captured) -> Any:
        chat = isinstance(one.messages, list)
        body: dict[str, Any] = {name: one.sampling[name] for name in KEPT if one.sampling.get(name) is not None}
        temperature = one.sampling.get("temperature")
        body |= {"model": one.alias, "store": False, "seed": secrets.randbelow(2**31)}
        body["temperature"] = max(TEMPERATURE, temperature if isinstance(temperature, int | float) else TEMPERATURE)
        body |= {"messages" if chat else "prompt": prompt_of(one), **({"tools": one.tools} if one.tools else {})}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        url = f"{address.rstrip('/')}/v1/{'chat/completions' if chat else 'completions'}"
        request = urllib.request.Request(url, orjson.dumps(body), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            choices = answer_of(answer.read()).get("choices") or [None]
        return choices[0]

    return ask


class Sampler:
    """Draws in a thread, ahead of the reviewer."""

    def __init__(self, run: Path, ask: Ask, kinds: Sequence[Kind]) -> None:
        self._ask, self._kinds = ask, kinds
        self._writer = Writer(samples_store(run), 1 << 20, 3600.0)
        self.found, _ = known_samples(run)
        self.trouble = ""  # why the newest draw failed
        self._asked: set[str] = set()
        self._queue: queue.SimpleQueue[Captured | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._draw_all, daemon=True)
        self._thread.start()

    def want(self, exchanges: Iterable[Captured]) -> None:
        """Draw for these, in order, unless that is done or under way."""
        for one in exchanges:
            if one.id not in self.found and one.id not in self._asked:
                self._asked.add(one.id)
                self._queue.put(one)

    def wait(self, number: str, seconds: float) -> Side | None:
        """The second answer to an exchange, waited for so long; None where none could be drawn."""
        with self._changed:
            self._changed.wait_for(lambda: number in self.found or number not in self._asked, seconds)
        return self.found.get(number)

    def close(self) -> None:
        """Stop drawing."""
        self._queue.put(None)
        self._thread.join(1.0)
        self._writer.roll()

    def _draw_all(self) -> None:
        while (one := self._queue.get()) is not None:
            side = None
            try:
                side = self._draw(one)
            except (OSError, ValueError) as error:
                self.trouble = str(error)
                log.warning("review: no second answer from the endpoint: %s", error)
            with self._changed:
                if side:
                    self.found[one.id] = side
                self._asked.discard(one.id)
                self._changed.notify_all()

    def _draw(self, one: Captured) -> Side | None:
        choice = self._ask(one)
        said = (choice or {}).get("text") or (choice or {}).get("message")
        if not said:
            return None
        (kept,), _ = mask([said], self._kinds)
        answer = kept if isinstance(kept, str) else [{"role": "assistant", **kept}]
        side = Side(f"sample-{secrets.token_hex(8)}", one.alias, answer)  # whatever the alias stands for now
        row = {"id": side.id, "time": time.time(), "exchange": one.id, "version": side.version}
        self._writer.append([{**row, "answer": orjson.dumps(answer).decode()}])
        return side
