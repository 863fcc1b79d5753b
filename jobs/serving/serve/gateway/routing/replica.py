"""Routing state of a replica with the prompt prefixes that it has seen, and the choice of a replica for a prompt."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ropewalk.jobs.serving.serve.routes import Replica

_MAX_BLOCKS = 256  # per prompt; the rest is ignored
_CAPACITY = 8192  # blocks per replica


def prefix_blocks(prompt: bytes, block_bytes: int) -> tuple[bytes, ...]:
    """Return one hash per whole block of the prompt; equal leading hashes mean equal leading blocks."""
    running = hashlib.blake2b(digest_size=8)
    hashes = []
    for at in range(0, min(len(prompt) // block_bytes, _MAX_BLOCKS) * block_bytes, block_bytes):
        running.update(prompt[at : at + block_bytes])
        hashes.append(running.digest())
    return tuple(hashes)


class Prefixes:
    """The most recent prompt blocks of a replica."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def shared(self, blocks: Sequence[bytes]) -> int:
        """Return the number of leading blocks of a prompt that the replica has seen."""
        for number, block in enumerate(blocks):
            if block not in self._blocks:
                return number
        return len(blocks)

    def add(self, blocks: Sequence[bytes]) -> None:
        """Record the blocks of a prompt sent to the replica."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > _CAPACITY:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget all blocks, because the replica's process was replaced."""
        self._blocks.clear()


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
