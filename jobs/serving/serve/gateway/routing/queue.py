"""The requests of one version that wait for a slot, and the slots of its replicas."""

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

from ropewalk.jobs.serving.serve.gateway.http.answers import RefusalError
from ropewalk.jobs.serving.serve.gateway.routing.replica import ReplicaState, choose

_LOOK_AHEAD = 8  # of the first so many that wait, one whose prompt a free replica knows goes first
_MOST_SKIPS = 4  # so often another goes before the one that has waited longest
_KNOWN_SERVICE = 0.1  # weight of the newest figure in the mean
_LEAST_WAITING = 4


@dataclass(eq=False)
class _Waiting:
    blocks: tuple[bytes, ...]
    future: "asyncio.Future[ReplicaState]"
    skips: int = 0


@dataclass
class Slot:
    """A place at a replica, until it is given back."""

    queue: "VersionQueue"
    state: ReplicaState
    began: float = field(default_factory=time.monotonic)
    held: bool = True

    def give_back(self, *, completed: bool) -> None:
        """Let the next one in. `completed`: how long it took says how long requests take."""
        if self.held:
            self.held = False
            self.queue.release(self.state, time.monotonic() - self.began if completed else None)


class VersionQueue:
    """First come, first served, but for prompts whose beginning a free replica knows."""

    def __init__(self, version: str, *, per_slot: float, imbalance: float) -> None:
        self.version = version
        self.replicas: dict[str, ReplicaState] = {}
        self.service_seconds = 0.0
        self._per_slot, self._imbalance = per_slot, imbalance
        self._waiting: deque[_Waiting] = deque()
        self._most_slots = 1

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that a replica answers now."""
        return sum(each.running for each in self.replicas.values())

    @property
    def slots(self) -> int:
        """Slots of the replicas that answer; of those that were there last, while none is."""
        now = sum(each.replica.slots for each in self.replicas.values() if each.listed and each.away_since is None)
        if now:
            self._most_slots = now
        return now or self._most_slots

    def expected_wait_seconds(self) -> float:
        """How long a request that comes now would wait, by how long others took."""
        return (len(self._waiting) + 1) * self.service_seconds / self.slots

    async def take(self, blocks: tuple[bytes, ...], *, remaining_seconds: float, again: bool = False) -> Slot:
        """A slot at the best replica, as soon as there is one. `again`: the request was begun, and goes before all others.

        Raises RefusalError (429) where too many wait, or where its turn would come too late.
        """
        if not self._waiting or again:
            state = choose(list(self.replicas.values()), blocks, self._imbalance)
            if state is not None:
                return self._occupy(state, blocks)
        if not again:
            self._refuse_excess(remaining_seconds)
        waiting = _Waiting(blocks, asyncio.get_running_loop().create_future())
        (self._waiting.appendleft if again else self._waiting.append)(waiting)
        try:
            state = await waiting.future
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.future.done() and not waiting.future.cancelled():
                self.release(waiting.future.result(), None)
            raise
        return Slot(self, state)

    def release(self, state: ReplicaState, seconds: float | None) -> None:
        """A slot is free again."""
        state.running -= 1
        if seconds is not None:
            known = self.service_seconds
            self.service_seconds = known + _KNOWN_SERVICE * (seconds - known) if known else seconds
        if not state.listed and not state.running and self.replicas.get(state.replica.id) is state:
            del self.replicas[state.replica.id]
        self.wake()

    def wake(self) -> None:
        """Give free slots to those that wait."""
        # a task that is cancelled takes itself out only when it runs again, and its future is over before
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.future.done())
        while self._waiting:
            if (chosen := self._next()) is None:
                return
            waiting, state = chosen
            self._waiting.remove(waiting)
            self._count(state, waiting.blocks)
            waiting.future.set_result(state)

    def _next(self) -> tuple[_Waiting, ReplicaState] | None:
        replicas = list(self.replicas.values())
        first = self._waiting[0]
        state = choose(replicas, first.blocks, self._imbalance)
        if state is None:
            return None
        if first.skips < _MOST_SKIPS and not state.prefixes.shared(first.blocks):
            for other in list(self._waiting)[1:_LOOK_AHEAD]:
                if other.blocks and state.prefixes.shared(other.blocks):
                    first.skips += 1
                    return other, state
        return first, state

    def _occupy(self, state: ReplicaState, blocks: tuple[bytes, ...]) -> Slot:
        self._count(state, blocks)
        return Slot(self, state)

    @staticmethod
    def _count(state: ReplicaState, blocks: tuple[bytes, ...]) -> None:
        state.running += 1
        state.last_used = time.monotonic()
        state.prefixes.add(blocks)

    def _refuse_excess(self, remaining_seconds: float) -> None:
        most = max(_LEAST_WAITING, round(self._per_slot * self.slots)) if self._per_slot else 0
        expected = self.expected_wait_seconds()
        if len(self._waiting) >= most or expected > remaining_seconds:
            seconds = max(1, math.ceil(expected))
            words = f"{len(self._waiting)} requests wait already; come back in {seconds} s"
            raise RefusalError(429, words, "overloaded", retry_after=seconds)
