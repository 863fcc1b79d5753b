"""Hundreds of streams while replicas and gateways are killed at random: no error, and every text as undisturbed."""

import asyncio
import random
from pathlib import Path

import pytest

from jobs.serve.gateway.http.upstream import Upstreams
from tests.benchmarks.serve_load import Seen, ask
from tests.jobs.serve.gateway.endpoint import HTTP, Endpoint, FakeEngine, chat, texts

NUM_STREAMS, AT_ONCE = 200, 6

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("way", ["continue_from", "token_ids", "replay"])
def test_two_hundred_streams_and_as_many_kills(tmp_path: Path, way: str) -> None:
    name = {"continue_from": "transformers", "token_ids": "vllm", "replay": "other"}[way]
    engines = [FakeEngine("--token", "0.004", "--way", way, engine=name, slots=8) for _ in range(3)]
    made = Endpoint(tmp_path, engines, queue_per_slot=8)
    draw = random.Random(way)
    kills = {"replica": 0, "gateway": 0}

    def kill(seen: Seen, after: int, victim: str) -> None:
        if len(seen.times) == after:
            kills[victim] += 1
            if victim == "gateway":
                made.kill_gateway()
            else:
                (busy := draw.choice(engines)).kill()
                busy.start(busy.port)

    async def run() -> list[Seen]:
        upstreams, places = Upstreams(), asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> Seen:
            after, victim = draw.randrange(1, 45), "gateway" if number % 10 == 9 else "replica"
            async with places:
                body = chat(f"stream {number}", max_tokens=50, stream_options={"include_usage": True})
                return await ask(upstreams, made.url, body, lambda seen: kill(seen, after, victim))

        seen = await asyncio.gather(*(one(number) for number in range(NUM_STREAMS)))
        upstreams.close()
        await asyncio.sleep(0)
        return seen

    try:
        seen = asyncio.run(run())
        wrong = [one for one in seen if not one.good]
        assert not wrong, (len(wrong), wrong[0].status, wrong[0].error, bytes(wrong[0].body[-500:]), made.said()[-3000:])
        for number, one in enumerate(seen):
            body = chat(f"stream {number}", max_tokens=50)
            assert one.text == texts(HTTP.post(f"http://127.0.0.1:{engines[0].port}/v1/chat/completions", json=body).content)
            assert b'"completion_tokens":50' in one.body
        assert kills["gateway"] == NUM_STREAMS // 10
        assert kills["replica"] == NUM_STREAMS - NUM_STREAMS // 10
    finally:
        made.close()
