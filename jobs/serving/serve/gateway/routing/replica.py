"""Routing state of a replica, and the choice of a replica for a prompt."""

import time
from dataclasses import dataclass, field

from ropewalk.jobs.serving.serve.gateway.routing.prefixes import Prefixes
from ropewalk.jobs.serving.serve.routes import Replica


@dataclass(eq=False)
class ReplicaState:
    """Load and health of one replica, as the gateway knows them."""

    replica: Replica
    running: int = 0
    unhealthy_since: float | None = None  # monotonic seconds; None while it answers
    listed: bool = True  # present in the newest routes.json
    last_used: float = 0.0  # breaks ties between equally loaded replicas: least recently used first
    prefixes: Prefixes = field(default_factory=Prefixes)

    def is_available(self) -> bool:
        """Return True if the replica is listed, healthy and has a free slot."""
        return self.listed and self.unhealthy_since is None and self.running < self.replica.slots

    @property
    def load(self) -> float:
        """Share of busy slots."""
        return self.running / self.replica.slots

    def mark_unhealthy(self) -> None:
        """Take the replica out of rotation until a health check passes, and forget its cached prefixes."""
        if self.unhealthy_since is None:
            self.unhealthy_since = time.monotonic()
            self.prefixes.clear()


def choose_replica(replicas: list[ReplicaState], prefix_blocks: tuple[bytes, ...], max_imbalance: float) -> ReplicaState | None:
    """Return the replica for a prompt, or None if none has a free slot.

    The replica with the longest cached prefix of the prompt wins, as long as it runs at most `max_imbalance` times its slots
    (at least one request) more than the least loaded one. Otherwise the least loaded one wins.
    """
    available = [replica for replica in replicas if replica.is_available()]
    if not available:
        return None
    least = min(available, key=lambda replica: (replica.load, replica.last_used))
    if not prefix_blocks or len(available) == 1:
        return least
    num_shared = {id(replica): replica.prefixes.shared(prefix_blocks) for replica in available}
    allowed = [
        replica for replica in available if replica.running - least.running <= max(1.0, max_imbalance * replica.replica.slots)
    ]
    best = max(allowed, key=lambda replica: (num_shared[id(replica)], -replica.load))
    return best if num_shared[id(best)] > num_shared[id(least)] else least
