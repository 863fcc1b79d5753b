"""An open loop of requests to an endpoint: slow answers do not slow down the requests."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from ropewalk.jobs.serving.serve.gateway.upstream import BrokenError, UnreachableError, Upstreams

CHAT = "/v1/chat/completions"


@dataclass
class Seen:
    """One request as its client saw it."""

    began: float = field(default_factory=time.perf_counter)
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


async def ask(upstreams: Upstreams, url: str, body: dict[str, Any], on_piece: Callable[[Seen], None] | None = None) -> Seen:
    """One request, to its end."""
    answer = Seen(on_piece=on_piece)
    try:
        async with upstreams.ask(url, CHAT, json.dumps(body).encode()) as reply:
            answer.status = reply.status
            async for data in reply.pieces():
                answer.add(data)
    except (UnreachableError, BrokenError) as error:
        answer.error = str(error)
    answer.ended = time.perf_counter()
    return answer


async def open_loop(url: str | Sequence[str], bodies: Sequence[dict[str, Any]], rate: float, seed: int = 0) -> list[Seen]:
    """Ask all, at random moments with so many a second on average; of several addresses each time a random one."""
    draw, upstreams = random.Random(seed), Upstreams()
    tasks = []
    at = time.perf_counter()
    for body in bodies:
        at += draw.expovariate(rate)
        if (wait := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        target = url if isinstance(url, str) else draw.choice(url)
        tasks.append(asyncio.create_task(ask(upstreams, target, body)))
    answers = [await task for task in tasks]
    await upstreams.close()
    return answers


def percentile(values: Sequence[float], share: float) -> float:
    """A value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of processes and of their living descendants."""
    total = 0.0
    for pid in pids:
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            continue
        for process in family:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
    return total
