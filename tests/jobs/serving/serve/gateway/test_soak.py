"""Hundreds of streams while replicas are killed at random: no error, and every text as undisturbed."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.benchmarks.serve_load import Seen, ask, open_session
from tests.jobs.serving.serve.gateway.endpoint import HTTP, Endpoint, FakeEngine, chat, texts

NUM_STREAMS, AT_ONCE = 200, 6
PROGRESS_EVENTS = 2  # what is on its way when a replica dies may be one

pytestmark = pytest.mark.soak("200 streams and kills, three times; test_nothing_lost.py has one of each kind")


class Killer:
    """Kills a replica for each stream, from its `after`-th piece on.

    It waits until every open stream has had more of its answer since the kill before: a request of which replicas die several
    times without that is given up by design, and how many deaths meet by chance would be the machine's load alone.
    """

    def __init__(self, endpoint: Endpoint, draw: random.Random) -> None:
        self.endpoint, self.draw = endpoint, draw
        self.kills = self.due = 0
        self.counted: set[int] = set()  # streams whose moment has come
        self.open: dict[int, int] = {}  # how many events each open stream has had
        self.before: dict[int, int] = {}  # and how many at the kill before, if it was open then

    def look(self, number: int, answer: Seen, after: int) -> None:
        """A stream has had more events."""
        events = self.open[number] = answer.body.count(b"data: ")  # pieces of a busy machine hold several
        if after and number not in self.counted and events >= after:
            self.counted.add(number)
            self.due += 1
        if self.due and all(count - self.before.get(n, -PROGRESS_EVENTS) >= PROGRESS_EVENTS for n, count in self.open.items()):
            self.due -= 1
            self.kills += 1
            (victim := self.draw.choice(self.endpoint.engines)).kill()
            victim.start(victim.port)
            self.before = dict(self.open)


@pytest.mark.parametrize("way", ["continue_from", "token_ids", "replay"])
def test_two_hundred_streams_and_as_many_kills(tmp_path: Path, way: str) -> None:
    name = {"continue_from": "transformers", "token_ids": "vllm", "replay": "other"}[way]
    engines = [FakeEngine("--token", "0.004", "--way", way, engine=name, slots=8) for _ in range(3)]
    endpoint = Endpoint(tmp_path, engines)
    draw = random.Random(way)
    killer = Killer(endpoint, draw)

    async def run() -> list[Seen]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> Seen:
            after = draw.randrange(1, 30) if number < NUM_STREAMS else 0
            async with places:
                body = chat(f"stream {number}", max_tokens=50, stream_options={"include_usage": True})
                killer.open[number] = 0
                answer = await ask(session, endpoint.url, body, lambda partial: killer.look(number, partial, after))
                del killer.open[number]
                return answer

        async with open_session() as session:
            answers = await asyncio.gather(*(one(number) for number in range(NUM_STREAMS)))
            while killer.due:
                answers += await asyncio.gather(*(one(len(answers) + more) for more in range(AT_ONCE)))
        return answers

    try:
        observed = asyncio.run(run())
        wrong = [item for item in observed if not item.good]
        assert not wrong, (len(wrong), wrong[0].status, wrong[0].error, bytes(wrong[0].body[-500:]), endpoint.log()[-3000:])
        for number, answer in enumerate(observed):
            body = chat(f"stream {number}", max_tokens=50)
            assert answer.text == texts(HTTP.post(f"http://127.0.0.1:{engines[0].port}/v1/chat/completions", json=body).content)
            assert b'"completion_tokens":50' in answer.body
        assert killer.kills == NUM_STREAMS
    finally:
        endpoint.close()
