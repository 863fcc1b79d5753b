"""Queue of the requests of a version, and the slots of its replicas."""

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.routing.replica import ReplicaState, choose_replica

_LOOK_AHEAD = 8  # waiting requests among which one with a cached prefix may go first
_MAX_SKIPS = 4  # times the first request may be overtaken
_SERVICE_WEIGHT = 0.1  # weight of the newest value in the mean service time


@dataclass(eq=False)
class _Waiting:
    blocks: tuple[bytes, ...]
    future: "asyncio.Future[ReplicaState]"
    skips: int = 0


@dataclass
class Slot:
    """A slot of a replica, held until it is given back, once."""

    queue: "VersionQueue"
    state: ReplicaState
    began: float = field(default_factory=time.monotonic)

    def give_back(self, *, completed: bool) -> None:
        """Release the slot. The time of a completed request updates the mean service time."""
        self.queue.release(self.state, time.monotonic() - self.began if completed else None)


class VersionQueue:
    """First in, first out, except for requests whose prompt prefix is cached on a free replica."""

    def __init__(self, version: str, *, max_seconds: float, max_requests: int, imbalance: float) -> None:
        self.version = version
        self.replicas: dict[str, ReplicaState] = {}
        self.service_seconds = 0.0
        self._max_seconds, self._max_requests, self._imbalance = max_seconds, max_requests, imbalance
        self._waiting: deque[_Waiting] = deque()
        self._last_slots = 1

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(state.running for state in self.replicas.values())

    @property
    def slots(self) -> int:
        """Number of slots of available replicas; while none is available, the last such number."""
        now = sum(state.replica.slots for state in self.replicas.values() if state.listed and state.unhealthy_since is None)
        if now:
            self._last_slots = now
        return now or self._last_slots

    def expected_wait_seconds(self) -> float:
        """Estimate the waiting time of a new request from the mean service time."""
        return (len(self._waiting) + 1) * self.service_seconds / self.slots

    async def take(self, blocks: tuple[bytes, ...], *, remaining_seconds: float, resumed: bool = False) -> Slot:
        """Wait for a slot on the best replica. `resumed` requests were started before and go first.

        Raises RefusalError (429) if too many requests wait, or if the wait is or would be too long.
        """
        if not self._waiting or resumed:
            state = choose_replica(list(self.replicas.values()), blocks, self._imbalance)
            if state is not None:
                self._count(state, blocks)
                return Slot(self, state)
        if not resumed:
            self._refuse_excess(remaining_seconds)
        waiting = _Waiting(blocks, asyncio.get_running_loop().create_future())
        (self._waiting.appendleft if resumed else self._waiting.append)(waiting)
        try:
            async with asyncio.timeout(None if resumed else self._max_seconds):
                state = await waiting.future
        except TimeoutError:
            self._withdraw(waiting)
            raise self._overloaded() from None
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise
        return Slot(self, state)

    def _withdraw(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        elif waiting.future.done() and not waiting.future.cancelled():
            self.release(waiting.future.result(), None)

    def release(self, state: ReplicaState, seconds: float | None) -> None:
        """Free a slot; `seconds` is the service time of a completed request."""
        state.running -= 1
        if seconds is not None:
            mean = self.service_seconds
            self.service_seconds = mean + _SERVICE_WEIGHT * (seconds - mean) if mean else seconds
        if not state.listed and not state.running and self.replicas.get(state.replica.id) is state:
            del self.replicas[state.replica.id]
        self.wake()

    def wake(self) -> None:
        """Assign free slots to waiting requests."""
        # a cancelled task removes itself only when it runs again; its future is done before
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
        state = choose_replica(replicas, first.blocks, self._imbalance)
        if state is None:
            return None
        if first.skips < _MAX_SKIPS and not state.prefixes.shared(first.blocks):
            for other in list(self._waiting)[1:_LOOK_AHEAD]:
                if other.blocks and state.prefixes.shared(other.blocks):
                    first.skips += 1
                    return other, state
        return first, state

    @staticmethod
    def _count(state: ReplicaState, blocks: tuple[bytes, ...]) -> None:
        state.running += 1
        state.last_used = time.monotonic()
        state.prefixes.add(blocks)

    def _refuse_excess(self, remaining_seconds: float) -> None:
        limit = min(remaining_seconds, self._max_seconds)
        if len(self._waiting) >= self._max_requests or self.expected_wait_seconds() > limit:
            raise self._overloaded()

    def _overloaded(self) -> RefusalError:
        seconds = max(1, math.ceil(self.expected_wait_seconds()))
        message = f"{len(self._waiting)} requests are waiting; retry in {seconds} s"
        return RefusalError(429, message, "overloaded", retry_after=seconds)
