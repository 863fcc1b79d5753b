"""Prompt prefixes seen by a replica, as chained hashes of blocks."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

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
