"""The k-th training sequence of a run, independent of the world size: a pure function of (seed, k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.datapipe.loader.blocks import OpenShard
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.datapipe.loader.dataset import Dataset, OnCorrupt
from ropewalk.datapipe.loader.mixture import locate, quotas
from ropewalk.datapipe.loader.order import WINDOW_RUNS, Indices, firsts_of_runs, hash_words, permute, permute_runs
from ropewalk.datapipe.loader.remote import ReadAhead
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.shard_table import ShardTable

DEFAULTS = LoaderConfig()
MOST_OPEN = 1000  # shards
PLAN = 4096  # positions that are resolved at once: the cost is per array, not per sample


@dataclass(frozen=True)
class Source:
    """A data set (a directory or fsspec URL) and its weight in the mixture."""

    path: str
    weight: float = 1.0


class TokenLoader:
    """Sequences of `seq_len + 1` tokens from one or more data sets, mixed by weight and reshuffled in each epoch.

    A sequence is a window of a shard at stride `seq_len`; neighbours share one token, the target of one and the input of the
    next. Each source has its own epochs. With `most`, only so many sequences are read in order, and each source contributes
    its share of the split: the first sequences of the split would all be from the first source. Raises DataError and
    CorruptShardError.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seq_len: int,
        seed: int,
        split: str = "train",
        most: int | None = None,
        on_corrupt: OnCorrupt = "error",
        options: LoaderConfig = DEFAULTS,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len: must be at least 1, not {seq_len}")
        self.seq_len, self.seed, self.split = seq_len, seed, split
        self.datasets = [Dataset(source.path, split, on_corrupt, seq_len=seq_len, options=options) for source in sources]
        self._quotas = quotas([source.weight for source in sources])
        for dataset in self.datasets:
            self._require_sequences(dataset)
        self._sizes = [int(dataset.ends[-1]) for dataset in self.datasets]
        self._taken = self._sizes if most is None or most >= sum(self._sizes) else shares(most, self._sizes)
        self._first_shard = np.cumsum([0, *(len(dataset.shards) for dataset in self.datasets)])
        self.options, self._run = options, options.block_samples
        self._expected = -1  # the latest plan whose runs were fetched ahead
        self._ahead = ReadAhead() if any(dataset.is_remote for dataset in self.datasets) else None
        self._open: dict[int, OpenShard] = {}  # by the number of the shard, in the order of opening
        # the plans of the latest ranges of positions
        self._plan = lru_cache(maxsize=4)(self._make_plan)

    @property
    def sequences(self) -> int:
        """Number of sequences in one epoch of all sources, at most `most`."""
        return sum(self._taken)

    @property
    def sequences_of_sources(self) -> list[int]:
        return list(self._taken)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, weighted by the number of sequences of each source."""
        if self._taken == self._sizes:
            return bytes_per_token([dataset.shards for dataset in self.datasets])
        ratios = [bytes_per_token([dataset.shards]) for dataset in self.datasets]
        return sum(ratio * taken for ratio, taken in zip(ratios, self._taken, strict=True)) / max(1, self.sequences)

    @property
    def manifests(self) -> list[Manifest]:
        return [dataset.manifest for dataset in self.datasets]

    @property
    def quarantined(self) -> list[str]:
        """Problem of each quarantined shard, in the order of sources and shards."""
        return [text for dataset in self.datasets for text in dataset.quarantined.values()]

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that were read and verified so far, or fetched from an object store."""
        return sum(dataset.bytes_read for dataset in self.datasets)

    def check_sizes(self) -> None:
        """Raise CorruptShardError if a local shard is missing or has another size. One rank of a run checks for all."""
        for dataset in self.datasets:
            dataset.check_sizes()

    def read(self, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Read the samples at these positions of the run (any k ≥ 0): [len(positions), seq_len + 1]."""
        batch, current = np.empty((len(positions), self.seq_len + 1), np.int64), -1
        for row, position in zip(batch, positions, strict=True):
            number, slot = divmod(position, PLAN)
            if number != current:
                current, (shards, starts) = number, self._plan(number)
            self._copy(row, shards[slot], starts[slot])
        return batch

    def in_order(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Read sequences [start, stop) in disk order (with `most`: the first of each source): [stop - start, seq_len + 1]."""
        assert 0 <= start <= stop <= self.sequences, f"[{start}, {stop}) is not within [0, {self.sequences})"
        batch = np.empty((stop - start, self.seq_len + 1), np.int64)
        bounds = np.cumsum(self._taken)
        indices = np.arange(start, stop)
        sources = np.searchsorted(bounds, indices, side="right")
        for row, source, index in zip(batch, sources.tolist(), indices.tolist(), strict=True):
            within = np.array([index - (int(bounds[source]) - self._taken[source])])
            shards, starts = self._find(source, within, np.zeros(1, np.int64))
            self._copy(row, int(shards[0]), int(starts[0]))
        return batch

    def _copy(self, row: npt.NDArray[np.int64], number: int, start: int) -> None:
        shard = self._open.get(number) or self._open_shard(number)
        row[:] = shard.read(start, start + self.seq_len + 1)  # the only copy; converts the file's integers to int64

    def _open_shard(self, number: int) -> OpenShard:
        source = int(np.searchsorted(self._first_shard, number, side="right")) - 1
        shard = self._open[number] = self.datasets[source].open(number - int(self._first_shard[source]))
        if len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]
        return shard

    def _require_sequences(self, dataset: Dataset) -> None:
        counts = np.diff(dataset.ends, prepend=0)
        if not counts.any():
            raise DataError(
                f"{dataset.root.url}: no {self.split} sequence of seq_len={self.seq_len} fits into"
                f" {int(dataset.shards.tokens.sum())} tokens of {len(counts)} shards; use a smaller seq_len or more text"
            )
        if not np.delete(counts, list(dataset.quarantined)).any():
            raise DataError(f"{dataset.root.url}: all shards with a sequence are quarantined; make the data set again")

    def expect(self, positions: Sequence[int]) -> None:
        """Fetch samples that will be read soon in the background, if they are on an object store."""
        if self._ahead is None:
            return
        if self._run:
            if (number := positions[-1] // PLAN) != self._expected:
                self._expected = number
                self._expect_runs(number, self._run)
            return
        for position in positions:
            number, slot = divmod(position, PLAN)
            shards, starts = self._plan(number)
            self._fetch_ahead(shards[slot], starts[slot])

    def _expect_runs(self, number: int, run: int) -> None:
        """Fetch the runs of these samples' windows, and those of the next window as far as the samples are in this one."""
        assert self._ahead is not None, "there is data on an object store"
        sources, offsets, epochs = self._locate(np.arange(number * PLAN, (number + 1) * PLAN, dtype=np.int64))
        for key in np.unique(epochs * len(self.datasets) + sources).tolist():
            epoch, source = divmod(key, len(self.datasets))
            slots = offsets[(sources == source) & (epochs == epoch)] // run
            first, last = slots.min() // WINDOW_RUNS * WINDOW_RUNS, slots.max() + WINDOW_RUNS
            size = self._sizes[source]
            new = [slot for slot in range(first, min(last + 1, size // run)) if self._ahead.is_new((source, epoch, slot))]
            if new:
                firsts = firsts_of_runs(np.array(new), size, run, self.seed + (source << 32), epoch)
                ends = np.stack([firsts, firsts + run - 1], axis=1).ravel()  # a run may be in two shards
                for shard, start in zip(*self._find(source, ends, np.full(len(ends), epoch)), strict=True):
                    self._fetch_ahead(int(shard), int(start))

    def _fetch_ahead(self, number: int, start: int) -> None:
        source = int(np.searchsorted(self._first_shard, number, side="right")) - 1
        dataset, local = self.datasets[source], number - int(self._first_shard[source])
        if self._ahead is not None and dataset.is_remote and self._ahead.is_new((number, dataset.run_of(local, start))):
            self._ahead.call(lambda: dataset.fetch(local, start))

    def _locate(self, positions: Indices) -> tuple[Indices, Indices, Indices]:
        """Return source, index within the source's epoch before the shuffle, and epoch of samples."""
        if len(self.datasets) == 1:
            sources, indices = np.zeros_like(positions), positions
        else:
            sources, indices = locate(positions, self._quotas, self.seed)
        epochs, offsets = np.divmod(indices, np.array(self._sizes)[sources])
        return sources, offsets, epochs

    def _make_plan(self, number: int) -> tuple[list[int], list[int]]:
        """Return shard and first token of samples number * PLAN, ..., as lists, since they are read one by one."""
        assert number >= 0, "positions count from 0"
        sources, offsets, epochs = self._locate(np.arange(number * PLAN, (number + 1) * PLAN, dtype=np.int64))
        shards, starts = np.empty_like(sources), np.empty_like(sources)
        for source, size in enumerate(self._sizes):
            mine, seed = sources == source, self.seed + (source << 32)
            if self._run:
                shuffled = permute_runs(offsets[mine], size, self._run, seed, epochs[mine])
            else:
                shuffled = permute(offsets[mine], size, seed, epochs[mine])
            shards[mine], starts[mine] = self._find(source, shuffled, epochs[mine])
        return shards.tolist(), starts.tolist()

    def _find(self, source: int, indices: Indices, epochs: Indices) -> tuple[Indices, Indices]:
        """Return shard (counted over all sources) and first token of a source's sequences."""
        ends = self.datasets[source].ends
        bad = list(self.datasets[source].quarantined)
        local = np.searchsorted(ends, indices, side="right")
        if bad:
            indices = self._replace(source, indices, epochs, np.isin(local, bad))
            local = np.searchsorted(ends, indices, side="right")
        firsts = np.where(local > 0, ends[local - 1], 0)
        return local + self._first_shard[source], (indices - firsts) * self.seq_len

    def _replace(self, source: int, indices: Indices, epochs: Indices, lost: npt.NDArray[np.bool_]) -> Indices:
        """Replace each sequence of a quarantined shard by another one, chosen by a hash."""
        ends = self.datasets[source].ends
        counts = np.diff(ends, prepend=0)
        counts[list(self.datasets[source].quarantined)] = 0
        good_ends = np.cumsum(counts)
        picks = (hash_words(self.seed, source, epochs, indices) % np.uint64(good_ends[-1])).astype(np.int64)
        shard = np.searchsorted(good_ends, picks, side="right")
        # index within the shard, then within the source
        substitutes = picks - (good_ends - counts)[shard] + (ends - np.diff(ends, prepend=0))[shard]
        return np.where(lost, substitutes, indices)


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """Split `count` in proportion to `sizes`, by largest remainder."""
    total = sum(sizes)
    counts = [count * size // total for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda number: -(count * sizes[number] % total))
    for number in by_rest[: count - sum(counts)]:
        counts[number] += 1
    return counts


def bytes_per_token(tables: Sequence[ShardTable]) -> float:
    """Return UTF-8 bytes of text per token of these shards."""
    return int(sum(table.bytes.sum() for table in tables)) / max(1, int(sum(table.tokens.sum() for table in tables)))
