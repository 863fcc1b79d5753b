"""Which beginnings of prompts a replica has seen: by hashes of blocks, each of all that stands before it too."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

_MOST_BLOCKS = 256  # of a prompt; what lies behind them changes no decision
_KEPT_BLOCKS = 8192  # of a replica


def prefix_blocks(prompt: bytes, block_bytes: int) -> tuple[bytes, ...]:
    """A hash for each whole block of the prompt's beginning: two prompts share n of them as they share n blocks."""
    running = hashlib.blake2b(digest_size=8)
    found = []
    for at in range(0, min(len(prompt) // block_bytes, _MOST_BLOCKS) * block_bytes, block_bytes):
        running.update(prompt[at : at + block_bytes])
        found.append(running.digest())
    return tuple(found)


class Prefixes:
    """The blocks that a replica has seen, the latest ones."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def shared(self, blocks: Sequence[bytes]) -> int:
        """How many blocks at the beginning of a prompt it has seen."""
        for number, block in enumerate(blocks):
            if block not in self._seen:
                return number
        return len(blocks)

    def add(self, blocks: Sequence[bytes]) -> None:
        """Note that it sees a prompt."""
        for block in blocks:
            self._seen[block] = None
            self._seen.move_to_end(block)
        while len(self._seen) > _KEPT_BLOCKS:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        """It has forgotten all: it is another process now."""
        self._seen.clear()
