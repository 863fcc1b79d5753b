"""Which parts of the journal are free: extents whose size is a power of two, split and joined again (a buddy allocator)."""

from collections.abc import Iterable
from typing import NamedTuple

BLOCK_BYTES = 4096


class JournalFullError(Exception):
    """The journal has no room: whoever asked is told to come back later."""


class Extent(NamedTuple):
    """`2 ** order` blocks, from the block `first` on; `first` is a multiple of their number."""

    first: int
    order: int

    @property
    def num_blocks(self) -> int:
        """Blocks of it."""
        return 1 << self.order

    @property
    def num_bytes(self) -> int:
        """Bytes of it."""
        return BLOCK_BYTES << self.order


class Blocks:
    """Free extents of an area of so many blocks."""

    def __init__(self, num_blocks: int, used: Iterable[Extent] = ()) -> None:
        self.num_blocks = num_blocks
        self.free_blocks = 0
        self._free: list[set[int]] = [set() for _ in range(num_blocks.bit_length())]
        at = 0
        for extent in [*sorted(used), Extent(num_blocks, 0)]:
            self._add_run(at, extent.first)
            at = extent.first + extent.num_blocks

    def take(self, num_bytes: int) -> Extent:
        """An extent of at least so many bytes. Raises JournalFullError."""
        order = max(0, (num_bytes - 1) // BLOCK_BYTES).bit_length()
        for larger in range(order, len(self._free)):
            if self._free[larger]:
                first = self._free[larger].pop()
                for half in range(larger - 1, order - 1, -1):
                    self._free[half].add(first + (1 << half))
                self.free_blocks -= 1 << order
                return Extent(first, order)
        raise JournalFullError(f"no {num_bytes} bytes are free in one piece")

    def give_back(self, extent: Extent) -> None:
        """Make an extent free, joined with its free neighbours."""
        first, order = extent
        self.free_blocks += 1 << order
        while order + 1 < len(self._free):
            buddy = first ^ (1 << order)
            if buddy not in self._free[order]:
                break
            self._free[order].remove(buddy)
            first, order = min(first, buddy), order + 1
        self._free[order].add(first)

    def _add_run(self, first: int, end: int) -> None:
        while first < end:
            order = min((first & -first).bit_length() - 1 if first else len(self._free) - 1, (end - first).bit_length() - 1)
            self.give_back(Extent(first, order))
            first += 1 << order
