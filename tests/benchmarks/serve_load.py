"""An open loop of requests to an endpoint: slow answers do not slow down the requests."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

CHAT = "/v1/chat/completions"


@dataclass
class Seen:
    """One request as its client saw it."""

    began: float = field(default_factory=time.perf_counter)
    opened: float = 0.0  # beginning of its connection, if that is its own
    status: int = 0
    times: list[float] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    ended: float = 0.0
    error: str = ""
    on_piece: Callable[["Seen"], None] | None = None

    def add(self, data: bytes) -> None:
        self.times.append(time.perf_counter())
        self.body += data
        if self.on_piece is not None:
            self.on_piece(self)

    @property
    def first_ms(self) -> float:
        return 1000 * (self.times[0] - self.began)

    @property
    def gap_seconds(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.error and b'"error"' not in self.body and self.body.endswith(b"data: [DONE]\n\n")

    @property
    def text(self) -> str:
        lines = [line[6:] for line in bytes(self.body).split(b"\n") if line.startswith(b"data: {")]
        choices = [choice for line in lines for choice in json.loads(line).get("choices", ())]
        return "".join(choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices)


def open_session(*, fresh: bool = False, token: str = "") -> aiohttp.ClientSession:
    """Return a client; with `fresh` each request has a connection of its own."""
    trace = aiohttp.TraceConfig()

    async def connects(_: Any, context: Any, __: Any) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.opened = time.perf_counter()

    trace.on_connection_create_start.append(connects)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=fresh),
        timeout=aiohttp.ClientTimeout(total=300),
        trace_configs=[trace],
        headers={"Authorization": f"Bearer {token}"} if token else None,
    )


async def ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], on_piece: Callable[[Seen], None] | None = None
) -> Seen:
    """One request, to its end."""
    answer = Seen(on_piece=on_piece)
    try:
        async with session.post(url + CHAT, json=body, trace_request_ctx=answer) as reply:
            answer.status = reply.status
            async for data in reply.content.iter_any():
                answer.add(data)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.perf_counter()
    return answer


async def open_loop(
    url: str | Sequence[str],
    bodies: Sequence[dict[str, Any]],
    rate: float,
    seed: int = 0,
    *,
    fresh: bool = False,
    token: str = "",
) -> list[Seen]:
    """Ask all, at random moments with so many a second on average; of several addresses each time a random one."""
    draw, tasks = random.Random(seed), []
    async with open_session(fresh=fresh, token=token) as session:
        at = time.perf_counter()
        for body in bodies:
            at += draw.expovariate(rate)
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            target = url if isinstance(url, str) else draw.choice(url)
            tasks.append(asyncio.create_task(ask(session, target, body)))
        return [await task for task in tasks]


def percentile(values: Sequence[float], share: float) -> float:
    """A value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of processes and of their living descendants."""
    members = set[psutil.Process]()
    for pid in pids:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            members |= {root, *root.children(recursive=True)}
    total = 0.0
    for process in members:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
