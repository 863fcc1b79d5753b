"""A replica as the gateway sees it: its slots, what runs on it, whether it answers."""

import time
from dataclasses import dataclass, field

from ropewalk.jobs.serving.serve.gateway.routing.prefixes import Prefixes
from ropewalk.jobs.serving.serve.routes import Replica


@dataclass(eq=False)
class ReplicaState:
    """A replica, and how it does."""

    replica: Replica
    running: int = 0
    away_since: float | None = None  # it did not answer; it is asked for its health until it does
    listed: bool = True  # it stands in routes.json
    last_used: float = 0.0  # of two that are equally loaded, the one that has rested longer
    prefixes: Prefixes = field(default_factory=Prefixes)

    @property
    def free(self) -> bool:
        """Whether a request may go to it now."""
        return self.listed and self.away_since is None and self.running < self.replica.slots

    @property
    def load(self) -> float:
        """Share of its slots that are taken."""
        return self.running / self.replica.slots

    def lose(self) -> None:
        """It did not answer."""
        if self.away_since is None:
            self.away_since = time.monotonic()
            self.prefixes.clear()


def choose(replicas: list[ReplicaState], blocks: tuple[bytes, ...], imbalance: float) -> ReplicaState | None:
    """The replica for a prompt: the least loaded, unless another has seen its beginning and is ahead by little.

    By little: by `imbalance` of its slots, and one request at least. None where no replica is free.
    """
    free = [each for each in replicas if each.free]
    if not free:
        return None
    least = min(free, key=lambda each: (each.load, each.last_used))
    if not blocks or len(free) == 1:
        return least
    shared = {id(each): each.prefixes.shared(blocks) for each in free}
    allowed = [each for each in free if each.running - least.running <= max(1.0, imbalance * each.replica.slots)]
    best = max(allowed, key=lambda each: (shared[id(each)], -each.load))
    return best if shared[id(best)] > shared[id(least)] else least
