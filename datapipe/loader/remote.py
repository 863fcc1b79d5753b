"""Shards of an object store, read in ranges through the cache of this machine, and ahead of the samples."""

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

import numpy as np
import numpy.typing as npt

from ropewalk.cluster.errors import CorruptShardError, RopewalkError
from ropewalk.cluster.storage import StoragePath, retry
from ropewalk.datapipe.loader.block_cache import BlockCache
from ropewalk.datapipe.loader.blocks import REMEDY, SHIFT, Region, Sums, Tokens
from ropewalk.datapipe.manifest import Shard
from ropewalk.datapipe.shard_table import BLOCK_BYTES

THREADS = 8
REMEMBERED = 4096  # requests


class Regions:
    """Mapped pieces of shards. The ones mapped first are unmapped, since a removed file occupies the disk until then."""

    def __init__(self, cache: BlockCache, most: int) -> None:
        self.cache, self.most = cache, most
        self._keys: deque[tuple[dict[int, Region], int]] = deque()  # the regions of a shard, and the run of one of them

    def add(self, regions: dict[int, Region], run: int, region: Region) -> Region:
        """Keep a region in those of its shard, by run."""
        regions[run] = region
        self._keys.append((regions, run))
        if len(self._keys) > self.most:
            others, oldest = self._keys.popleft()
            others.pop(oldest, None)  # None: it was damaged and replaced, so that its key is here twice
        return region


class RemoteShard:
    """A shard whose runs of sequences are fetched one by one; `first` is the number of its first sequence in its split."""

    def __init__(
        self,
        root: StoragePath,
        shard: Shard,
        dtype: npt.DTypeLike,
        sums: Sums,
        regions: Regions,
        *,
        seq_len: int,
        run: int,
        first: int,
    ) -> None:
        self._root, self._shard, self._dtype, self._sums, self._regions = root, shard, dtype, sums, regions
        self._item, self._seq_len, self._run, self._first = np.dtype(dtype).itemsize, seq_len, run, first
        self._name = f"{root.url}/{shard.path}"
        self._mapped: dict[int, Region] = {}  # by run

    def read(self, start: int, stop: int) -> Tokens:
        """Return tokens [start, stop) of one sequence. A damaged piece is fetched again once."""
        run = (self._first + start // self._seq_len) // self._run
        region = self._mapped.get(run) or self._regions.add(self._mapped, run, self._map(run))
        try:
            return region.read(start, stop)
        except CorruptShardError:
            self._regions.cache.drop(self._file(run)[0])
        return self._regions.add(self._mapped, run, self._map(run)).read(start, stop)

    def verify(self) -> None:
        """Verify all sequences. A damaged piece is fetched again once."""
        last = self._first + max(0, self._shard.tokens - 1) // self._seq_len - 1
        for run in range(self._first // self._run, last // self._run + 1):
            try:
                self._map(run).verify()
            except CorruptShardError:
                self._regions.cache.drop(self._file(run)[0])
                self._map(run).verify()

    def fetch(self, start: int) -> None:
        """Fetch the run of the sequence at this token into the cache."""
        name, first, last = self._file((self._first + start // self._seq_len) // self._run)
        self._regions.cache.fetch(name, lambda: self._read(first, last))

    def _map(self, run: int) -> Region:
        name, first, last = self._file(run)
        view = self._regions.cache.map(name, lambda: self._read(first, last))
        return Region(view, self._shard, self._dtype, name=self._name, sums=self._sums, first_block=first)

    def _file(self, run: int) -> tuple[str, int, int]:
        """Return the name in the cache, the first and the last block of the sequences of a run in this shard."""
        start = max(0, run * self._run - self._first) * self._seq_len
        stop = min(self._shard.tokens, ((run + 1) * self._run - self._first) * self._seq_len + 1)
        first, last = (self._shard.tokens_at + token * self._item >> SHIFT for token in (start, stop - 1))
        return f"{self._shard.checksum[5:]}-{first}-{last}", first, last

    def _read(self, first: int, last: int) -> bytes:
        start, stop = first * BLOCK_BYTES, min(self._shard.size, (last + 1) * BLOCK_BYTES)
        try:
            data = _read_range(self._root, self._shard.path, start, stop)
        except FileNotFoundError:
            raise CorruptShardError(f"{self._name}: expected {self._shard.size} bytes, found no file; {REMEDY}") from None
        if len(data) != stop - start:
            raise CorruptShardError(f"{self._name}: expected {self._shard.size} bytes, found {start + len(data)}; {REMEDY}")
        return data


def _read_range(root: StoragePath, name: str, start: int, stop: int) -> bytes:
    if "s3" not in root.fs.protocol:
        return root.read(name, start, stop)
    from ropewalk.datapipe.loader.s3_ranges import read_range  # noqa: PLC0415 - an extra

    return retry(lambda: read_range(root.fs, root.path(name), start, stop), f"read {root.url}/{name}", root.patience_seconds)


class ReadAhead:
    """Calls functions in the background, in order, and remembers what was requested. Errors are left to the reader."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._keys: OrderedDict[Hashable, None] = OrderedDict()
        self._threads: list[threading.Thread] = []

    def is_new(self, key: Hashable) -> bool:
        """Return True unless this was called for the key recently."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        return True

    def call(self, fetch: Callable[[], None]) -> None:
        """Call `fetch` in the background."""
        self._requests.put(fetch)
        if len(self._threads) < THREADS:
            self._threads.append(threading.Thread(target=self._work, name="read ahead", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while True:
            fetch = self._requests.get()
            try:
                fetch()
            except (RopewalkError, OSError, RuntimeError):  # raised again where the sample is read; or the interpreter ends
                continue
