"""Tokens of a shard in mapped memory, whose blocks are verified when they are first read."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ropewalk.cluster.errors import CorruptShardError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Shard, checksum_of
from ropewalk.datapipe.shard_table import BLOCK_BYTES, BLOCKS_NAME, SUM, ShardTable

Tokens = npt.NDArray[Any]  # uint16 or uint32, a view of mapped memory
Sums = npt.NDArray[np.uint64]

REMEDY = "copy it again from its source, run `ropewalk run preprocess` again, or set on_corrupt=quarantine"
SHIFT = BLOCK_BYTES.bit_length() - 1
SUMS_AT_ONCE = BLOCK_BYTES  # bytes of checksums per request to an object store: of 128 GiB of shards


class OpenShard(Protocol):
    """Tokens of an open shard."""

    def read(self, start: int, stop: int) -> Tokens:
        """Return tokens [start, stop). Raises CorruptShardError if their blocks are damaged."""

    def verify(self) -> None:
        """Verify all tokens. Raises CorruptShardError."""


def block_count(size: int) -> int:
    """Return the number of blocks of a file."""
    return -(-size // BLOCK_BYTES)


class BlockSums:
    """Checksums of the blocks of a data set's shards, read for one shard at a time."""

    def __init__(self, root: StoragePath) -> None:
        self._root = root
        self._part = lru_cache(maxsize=8)(self._read_part)  # of an object store
        self._mapped: Any = None
        if root.local is not None and (root.local / BLOCKS_NAME).is_file():
            self._mapped = map_file(root.local / BLOCKS_NAME)

    def of(self, shards: ShardTable, number: int) -> Sums:
        """Return the checksums of a shard's blocks. Raises CorruptShardError if they are damaged."""
        shard, first = shards[number], int(shards.first_block[number])
        start, stop = (block * SUM.itemsize for block in (first, first + block_count(shard.size)))
        name = f"{self._root.url}/{BLOCKS_NAME}"
        try:
            raw = self._mapped[start:stop] if self._mapped is not None else self._fetch(start, stop)
        except FileNotFoundError:
            raise CorruptShardError(f"{name}: no such file; copy it again from its source") from None
        if checksum_of(raw) != shard.blocks:
            raise CorruptShardError(f"{name}: damaged where it describes {shard.path}; copy it again from its source")
        return np.frombuffer(raw, SUM)

    def _fetch(self, start: int, stop: int) -> bytes:
        first, last = start // SUMS_AT_ONCE, (stop - 1) // SUMS_AT_ONCE
        joined = b"".join(map(self._part, range(first, last + 1)))
        return joined[start - first * SUMS_AT_ONCE : stop - first * SUMS_AT_ONCE]

    def _read_part(self, number: int) -> bytes:
        return self._root.read(BLOCKS_NAME, number * SUMS_AT_ONCE, (number + 1) * SUMS_AT_ONCE)


class Region:
    """Blocks of a shard in mapped memory, from `first_block` on; slices of tokens are views."""

    def __init__(
        self,
        view: Any,
        shard: Shard,
        dtype: npt.DTypeLike,
        *,
        name: str,
        sums: Sums,
        verified: bytearray | None = None,
        first_block: int = 0,
    ) -> None:
        self._view, self._name, self._first_block = view, name, first_block
        self._item = np.dtype(dtype).itemsize
        self._at = shard.tokens_at - first_block * BLOCK_BYTES
        self._sums = sums[first_block : first_block + block_count(len(view))]
        self._verified = bytearray(len(self._sums)) if verified is None else verified  # a byte per block
        self._first = max(0, -(self._at // self._item))  # token; an Arrow buffer starts at a multiple of 8 bytes
        offset = self._at + self._first * self._item
        count = min(shard.tokens - self._first, (len(view) - offset) // self._item)
        self._tokens: Tokens = np.frombuffer(view, dtype, count, offset)

    def read(self, start: int, stop: int) -> Tokens:
        """Return tokens [start, stop) of the shard. Raises CorruptShardError if their blocks are damaged."""
        first, last = (self._at + start * self._item) >> SHIFT, (self._at + stop * self._item - 1) >> SHIFT
        if last > first + 1 or not (self._verified[first] and self._verified[last]):
            self._verify(first, last)
        return self._tokens[start - self._first : stop - self._first]

    def verify(self) -> None:
        """Verify all blocks. Raises CorruptShardError."""
        self._verify(0, len(self._sums) - 1)

    def _verify(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            if self._verified[number]:
                continue
            block, expected = self._view[number << SHIFT : (number + 1) << SHIFT], int(self._sums[number])
            if (checksum := xxhash.xxh3_64_intdigest(block)) != expected:
                start = (self._first_block + number) * BLOCK_BYTES
                raise CorruptShardError(
                    f"{self._name}: block {self._first_block + number} (bytes {start} to {start + len(block)}): expected"
                    f" checksum xxh3:{expected:016x}, found xxh3:{checksum:016x}; {REMEDY}"
                )
            self._verified[number] = 1


def map_file(path: Path) -> Any:
    """Map a file into memory. Raises FileNotFoundError."""
    with pa.memory_map(str(path)) as file:
        return memoryview(file.read_buffer())


def check_size(path: Path, name: str, expected: int) -> None:
    """Raise CorruptShardError unless a shard has this size."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptShardError(f"{name}: expected {expected} bytes, found no file; {REMEDY}") from None
    if size != expected:
        raise CorruptShardError(f"{name}: expected {expected} bytes, found {size}; {REMEDY}")
