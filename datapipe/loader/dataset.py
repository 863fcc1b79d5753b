"""One split of a data set: its shards, opened when they are first used."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt

from ropewalk.cluster.errors import ConfigError, CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.block_cache import BlockCache, cache_folder
from ropewalk.datapipe.loader.blocks import BlockSums, OpenShard, Region, check_size, map_file
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.datapipe.loader.order import WINDOW_RUNS
from ropewalk.datapipe.loader.remote import Regions, RemoteShard
from ropewalk.datapipe.loader.shard_cache import read_shards
from ropewalk.datapipe.manifest import Manifest, read_manifest
from ropewalk.datapipe.shard_table import BLOCK_BYTES, ShardTable

log = logging.getLogger(__name__)

OnCorrupt = Literal["error", "quarantine"]
STATS_AT_ONCE = 16
MAPPED = 2 * WINDOW_RUNS  # pieces: those of a window, with some of two shards
PIECE_BYTES = 4 << 20  # fetched at once if the order has no runs


class Dataset:
    """One split of a data set. Blocks are verified when they are first read; with `quarantine` all are, at the start.

    Raises DataError if there is no such data set or split, and CorruptShardError if a shard does not match the manifest,
    unless corrupt shards are quarantined.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        on_corrupt: OnCorrupt = "error",
        *,
        seq_len: int,
        options: LoaderConfig,
    ) -> None:
        if on_corrupt not in ("error", "quarantine"):
            raise ConfigError(f"on_corrupt: must be error or quarantine, not {on_corrupt!r}")
        self.root = StoragePath(path)
        self.manifest: Manifest = read_manifest(self.root)
        if not self.manifest.table.of_split(split).shards:
            splits = ", ".join(name for name in ("train", "validation") if self.manifest.table.of_split(name).shards) or "none"
            raise DataError(
                f"{path}: no {split} split (it has: {splits}); run preprocess with validation_fraction above 0 to get both"
            )
        self.table: ShardTable = read_shards(self.root, self.manifest)
        self.shards: ShardTable = self.table.of_split(split)
        self.seq_len = seq_len
        self.ends: npt.NDArray[np.int64] = np.cumsum(np.maximum(0, self.shards.tokens - 1) // seq_len)  # sequences so far
        self._item = np.dtype(self.manifest.token_type).itemsize
        self.run = options.block_samples or max(1, PIECE_BYTES // (seq_len * self._item))  # sequences that are fetched at once
        self._sums = BlockSums(self.root)
        self._verified: dict[int, bytearray] = {}  # local shards: a byte per block, also after they were closed
        self._regions = None if self.root.local is not None else self._open_cache(options)
        self.quarantined: dict[int, str] = {}  # index of the shard → description of the problem
        if on_corrupt == "quarantine":
            self._quarantine()

    def _open_cache(self, options: LoaderConfig) -> Regions:
        """Open the cache of an object store's blocks. Raises ConfigError if it cannot hold two windows of runs."""
        limit, piece = int(options.cache_gib * 2**30), self.run * self.seq_len * self._item + 2 * BLOCK_BYTES
        if options.block_samples and limit < 2 * WINDOW_RUNS * piece:
            raise ConfigError(
                f"loader.cache_gib: {options.cache_gib:g} cannot hold {2 * WINDOW_RUNS} runs of {self.run} sequences;"
                f" set at least {2 * WINDOW_RUNS * piece / 2**30:.3g}, or a smaller loader.block_samples"
            )
        if not options.block_samples and limit < int(self.shards.size.sum()):
            log.warning(
                "%s: is larger than loader.cache_gib, %g, so that many sequences fetch %d MiB each; set loader.block_samples",
                *(self.root.url, options.cache_gib, PIECE_BYTES >> 20),
            )
        return Regions(BlockCache(cache_folder(options.cache), limit), most=MAPPED)

    @property
    def is_remote(self) -> bool:
        return self._regions is not None

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that were read and verified so far, or fetched from an object store."""
        if self._regions is not None:
            return self._regions.cache.bytes_fetched
        return sum(verified.count(1) for verified in self._verified.values()) * BLOCK_BYTES

    def open(self, number: int) -> OpenShard:
        """Open a shard. Raises CorruptShardError if it is missing or has another size, here or when it is first read."""
        shard, local = self.shards[number], self.root.local
        sums = self._sums.of(self.shards, number)
        dtype, name = self.manifest.token_type, self._name(shard.path)
        if self._regions is not None:
            first = int(self.ends[number - 1]) if number else 0
            return RemoteShard(self.root, shard, dtype, sums, self._regions, seq_len=self.seq_len, run=self.run, first=first)
        assert local is not None, "a shard is local or remote"
        check_size(local / shard.path, name, shard.size)
        verified = self._verified.setdefault(number, bytearray(len(sums)))
        return Region(map_file(local / shard.path), shard, dtype, name=name, sums=sums, verified=verified)

    def run_of(self, number: int, start: int) -> int:
        """Return the run of the sequence that starts at this token of a shard."""
        return ((int(self.ends[number - 1]) if number else 0) + start // self.seq_len) // self.run

    def fetch(self, number: int, start: int) -> None:
        """Fetch the run of a sequence on an object store into the cache."""
        shard = self.open(number)
        assert isinstance(shard, RemoteShard), "only shards of an object store are fetched"
        shard.fetch(start)

    def check_sizes(self) -> None:
        """Raise CorruptShardError if a local shard is missing or has another size; cheap, so that a run does it at its start."""
        local = self.root.local
        if local is None:
            return

        def check(numbers: range) -> None:
            for number in numbers:
                if number not in self.quarantined:
                    path = self.shards.path(number)
                    check_size(local / path, self._name(path), int(self.shards.size[number]))

        parts = [range(first, len(self.shards), STATS_AT_ONCE) for first in range(STATS_AT_ONCE)]
        with ThreadPoolExecutor(STATS_AT_ONCE) as pool:  # a network file system answers many requests at once
            list(pool.map(check, parts))

    def _name(self, path: str) -> str:
        return f"{self.root.url}/{path}"

    def _quarantine(self) -> None:
        def problem(number: int) -> str | None:
            try:
                self.open(number).verify()
            except CorruptShardError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
            problems = list(pool.map(problem, range(len(self.shards))))
        self.quarantined = {number: text for number, text in enumerate(problems) if text is not None}
        for text in self.quarantined.values():
            log.warning("quarantined: %s", text)
        if len(self.quarantined) == len(self.shards):
            raise CorruptShardError(f"{self.root.url}: all shards are corrupt; the first one: {problems[0]}")
