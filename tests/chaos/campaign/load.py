"""Clients whose every answer is compared with the text that the engine must give."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp

from tests.fakes.answering_engine import greedy_text

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONGEST_SECONDS = 280.0  # the endpoint's own deadline is 300 s
MOST_TOKENS = 60


@dataclass
class Exchange:
    """One request as its client saw it; times are seconds of the monotonic clock."""

    marker: str  # occurs in this prompt alone
    opened: float = 0.0  # beginning of the connection that it used
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    id: str = ""
    problem: str = ""  # empty: the whole answer came, and is right


class Load:
    """Clients that ask one request after the other, each over a connection of its own."""

    def __init__(self, url: str, token: str, *, clients: int, seed: int) -> None:
        self.url, self.token = url, token
        self.exchanges: list[Exchange] = []
        self._draws = [random.Random(f"{seed} {number}") for number in range(clients)]
        self._burst = asyncio.Event()
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.open = 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(len(self._draws))]

    def resume(self) -> None:
        self._burst.set()

    async def pause(self) -> None:
        """Return once all open requests have ended."""
        self._burst.clear()
        while self.open:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        self._over = True
        self._burst.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        draw, state = self._draws[number], SimpleNamespace(opened=0.0)
        trace = aiohttp.TraceConfig()

        async def connects(*_: Any) -> None:
            state.opened = time.monotonic()

        trace.on_connection_create_start.append(connects)
        timeout = aiohttp.ClientTimeout(total=LONGEST_SECONDS)
        headers = {"Authorization": f"Bearer {self.token}"}
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[trace], timeout=timeout, headers=headers) as session:
            sequence = 0
            while True:
                await self._burst.wait()
                if self._over:
                    return
                sequence += 1
                exchange = Exchange(marker=f"client {number} asks {sequence} {draw.getrandbits(48):x}")
                self.open += 1
                try:
                    exchange.problem = await self._ask(session, draw, exchange)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                    exchange.problem = f"{type(error).__name__}: {error}"
                finally:
                    exchange.opened, exchange.ended = state.opened, time.monotonic()
                    self.open -= 1
                self.exchanges.append(exchange)
                await asyncio.sleep(draw.uniform(0.0, 0.2))

    async def _ask(self, session: aiohttp.ClientSession, draw: random.Random, exchange: Exchange) -> str:
        """Ask once and return what is wrong with the answer."""
        stream, chat, num_tokens = draw.random() < 0.5, draw.random() < 0.7, draw.randint(1, MOST_TOKENS)
        body: dict[str, Any] = {"temperature": 0, "max_tokens": num_tokens, "stream": stream}
        messages = [{"role": "user", "content": exchange.marker}]
        body |= {"messages": messages} if chat else {"prompt": exchange.marker}
        headers = {"Connection": "close"} if draw.random() < 0.2 else {}
        async with session.post(self.url + (CHAT if chat else COMPLETIONS), json=body, headers=headers) as answer:
            exchange.id = answer.headers.get("x-request-id", "")
            raw = await answer.read()
        if answer.status != 200:
            return f"{answer.status}: {raw[:200].decode(errors='replace')}"
        text = streamed_text(raw) if stream else _whole_text(json.loads(raw)["choices"][0])
        expected = greedy_text(json.dumps(messages) if chat else exchange.marker, num_tokens)
        if text is None:
            return f"the stream is cut after {len(raw)} bytes: {raw[-200:].decode(errors='replace')}"
        return "" if text == expected else f"another text: {text[:80]!r} instead of {expected[:80]!r}"


def streamed_text(raw: bytes) -> str | None:
    """Return the text of a stream, or None if it has no end or ends with an error."""
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return None
    events = [json.loads(line) for line in lines[:-1]]
    if any("error" in event for event in events):
        return None
    return "".join(_whole_text(choice) for event in events for choice in event["choices"])


def _whole_text(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
