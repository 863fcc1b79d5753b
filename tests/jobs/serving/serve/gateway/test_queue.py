"""Choice of a replica and queueing: the least loaded, unless another has the prompt cached; never beyond the slots."""

import asyncio
from collections import Counter

import pytest

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.routing.queue import Slot, VersionQueue
from ropewalk.jobs.serving.serve.gateway.routing.replica import ReplicaState, prefix_blocks
from ropewalk.jobs.serving.serve.routes import Replica


def _queue(*slots: int, max_requests: int = 256) -> VersionQueue:
    queue = VersionQueue("v", max_seconds=60.0, max_requests=max_requests, imbalance=0.25)
    for number, count in enumerate(slots):
        queue.replicas[str(number)] = ReplicaState(Replica(id=str(number), url=f"http://h:{number}", engine="e", slots=count))
    return queue


def _blocks(text: str) -> tuple[bytes, ...]:
    return prefix_blocks(text.encode(), 16)


def test_equal_beginnings_have_equal_blocks() -> None:
    blocks, other = _blocks("a" * 40 + "x" * 40), _blocks("a" * 40 + "y" * 40)
    assert blocks[:2] == other[:2]
    assert not set(blocks[2:]) & set(other[2:])


def test_requests_are_spread_and_prompts_come_back_to_who_knows_them() -> None:
    async def run() -> None:
        queue = _queue(4, 4)
        met: dict[int, set[str]] = {}
        for turn in range(40):
            slot = await queue.take(_blocks(str(turn % 10) * 64), remaining_seconds=9)
            met.setdefault(turn % 10, set()).add(slot.state.replica.id)
            slot.give_back(completed=True)
        assert all(len(replicas) == 1 for replicas in met.values())
        assert Counter(replica for replicas in met.values() for replica in replicas) == {"0": 5, "1": 5}
        held = [await queue.take(_blocks("0" * 64), remaining_seconds=9) for _ in range(8)]
        assert Counter(slot.state.replica.id for slot in held) == {"0": 4, "1": 4}  # a prompt that all ask for goes to both

    asyncio.run(run())


def test_no_slot_is_given_twice_and_those_that_wait_get_it_in_turn() -> None:
    async def run() -> None:
        queue = _queue(1, 1, max_requests=6)
        held = [await queue.take((), remaining_seconds=9) for _ in range(2)]
        order: list[int] = []

        async def one(number: int) -> None:
            slot = await queue.take((), remaining_seconds=9)
            order.append(number)
            slot.give_back(completed=True)

        waiting = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert (queue.running, queue.waiting) == (2, 6)
        with pytest.raises(RefusalError) as error:
            await queue.take((), remaining_seconds=9)
        assert (error.value.status, error.value.retry_after) == (429, 1)
        waiting[2].cancel()
        await asyncio.sleep(0)
        held[0].give_back(completed=True)
        await asyncio.wait(waiting)
        assert order == [0, 1, 3, 4, 5]
        held[1].give_back(completed=False)
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(run())


def test_whoever_leaves_as_a_slot_is_freed_takes_it_from_nobody() -> None:
    async def run() -> None:
        queue = _queue(1)
        held = await queue.take((), remaining_seconds=9)
        waiting = [asyncio.create_task(queue.take((), remaining_seconds=9)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        held.give_back(completed=True)  # before the first has heard that it is cancelled: the second gets it
        waiting[1].cancel()  # before it has heard that it has a slot
        (await waiting[2]).give_back(completed=True)
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(run())


def test_a_turn_that_would_come_too_late_is_refused_at_once() -> None:
    async def run() -> None:
        queue = _queue(1)
        queue.service_seconds = 10.0
        held: list[Slot] = [await queue.take((), remaining_seconds=5)]
        with pytest.raises(RefusalError) as error:
            await queue.take((), remaining_seconds=5)
        assert error.value.retry_after == 10
        again = asyncio.create_task(queue.take((), remaining_seconds=5, resumed=True))  # what was begun is never refused
        await asyncio.sleep(0)
        held[0].give_back(completed=True)
        assert (await again).state.running == 1

    asyncio.run(run())


def test_one_whose_prompt_is_known_may_go_first_but_not_for_ever() -> None:
    async def run() -> None:
        queue = _queue(1)
        slot = await queue.take(_blocks("k" * 64), remaining_seconds=9)
        order: list[str] = []

        async def one(name: str, text: str) -> None:
            mine = await queue.take(_blocks(text), remaining_seconds=9)
            order.append(name)
            await asyncio.sleep(0)
            mine.give_back(completed=False)

        tasks = [asyncio.create_task(one("unknown", "u" * 64))]
        tasks += [asyncio.create_task(one("known", "k" * 64)) for _ in range(8)]
        await asyncio.sleep(0)
        slot.give_back(completed=False)
        await asyncio.wait(tasks)
        assert order == ["known"] * 4 + ["unknown"] + ["known"] * 4

    asyncio.run(run())
