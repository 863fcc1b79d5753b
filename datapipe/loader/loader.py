"""The k-th training sequence of a run, independent of the world size: a pure function of (seed, k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.datapipe.loader.dataset import Dataset, OnCorrupt, Stream
from ropewalk.datapipe.loader.mixture import locate, quotas
from ropewalk.datapipe.loader.order import Indices, hash_words, permute
from ropewalk.datapipe.manifest import Manifest, Shard

PLAN = 1024  # positions that are resolved at once: the cost is per array, not per sample


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
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len: must be at least 1, not {seq_len}")
        self.seq_len, self.seed, self.split = seq_len, seed, split
        self.datasets = [Dataset(source.path, split, on_corrupt) for source in sources]
        self._quotas = quotas([source.weight for source in sources])
        self._ends = [self._count(dataset) for dataset in self.datasets]
        self._sizes = [int(ends[-1]) for ends in self._ends]
        self._taken = self._sizes if most is None or most >= sum(self._sizes) else shares(most, self._sizes)
        self._first_shard = np.cumsum([0, *(len(dataset.shards) for dataset in self.datasets)])
        self._streams: list[Stream | None] = [None] * int(self._first_shard[-1])
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
            return bytes_per_token([shard for dataset in self.datasets for shard in dataset.shards])
        ratios = [bytes_per_token(dataset.shards) for dataset in self.datasets]
        return sum(ratio * taken for ratio, taken in zip(ratios, self._taken, strict=True)) / max(1, self.sequences)

    @property
    def manifests(self) -> list[Manifest]:
        return [dataset.manifest for dataset in self.datasets]

    @property
    def quarantined(self) -> list[str]:
        """Problem of each quarantined shard, in the order of sources and shards."""
        return [text for dataset in self.datasets for text in dataset.quarantined.values()]

    def read(self, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Read the samples at these positions of the run (any k ≥ 0): [len(positions), seq_len + 1]."""
        batch = np.empty((len(positions), self.seq_len + 1), np.int64)
        for row, position in zip(batch, positions, strict=True):
            number, slot = divmod(position, PLAN)
            shards, starts = self._plan(number)
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

    def _copy(self, row: npt.NDArray[np.int64], shard: int, start: int) -> None:
        stream = self._streams[shard]
        if stream is None:
            source = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
            stream = self.datasets[source].open(shard - int(self._first_shard[source]))
            self._streams[shard] = stream
        row[:] = stream[start : start + self.seq_len + 1]  # the only copy; converts the file's integers to int64

    def _count(self, dataset: Dataset) -> Indices:
        """Return the cumulative number of sequences at the end of each shard."""
        counts = [max(0, shard.tokens - 1) // self.seq_len for shard in dataset.shards]
        if not sum(counts):
            tokens = sum(shard.tokens for shard in dataset.shards)
            raise DataError(
                f"{dataset.root.url}: no {self.split} sequence of seq_len={self.seq_len} fits into {tokens} tokens "
                f"of {len(counts)} shards; use a smaller seq_len or more text"
            )
        if not sum(count for number, count in enumerate(counts) if number not in dataset.quarantined):
            raise DataError(f"{dataset.root.url}: all shards with a sequence are quarantined; make the data set again")
        return cast(Indices, np.cumsum(counts))

    def _make_plan(self, number: int) -> tuple[list[int], list[int]]:
        """Return shard and first token of samples number * PLAN, ..., as lists, since they are read one by one."""
        assert number >= 0, "positions count from 0"
        positions = np.arange(number * PLAN, (number + 1) * PLAN, dtype=np.int64)
        if len(self.datasets) == 1:
            sources, indices = np.zeros_like(positions), positions
        else:
            sources, indices = locate(positions, self._quotas, self.seed)
        shards, starts = np.empty_like(positions), np.empty_like(positions)
        for source, size in enumerate(self._sizes):
            mine = sources == source
            epochs, offsets = np.divmod(indices[mine], size)
            shuffled = permute(offsets, size, self.seed + (source << 32), epochs)
            shards[mine], starts[mine] = self._find(source, shuffled, epochs)
        return shards.tolist(), starts.tolist()

    def _find(self, source: int, indices: Indices, epochs: Indices) -> tuple[Indices, Indices]:
        """Return shard (counted over all sources) and first token of a source's sequences."""
        ends = self._ends[source]
        bad = list(self.datasets[source].quarantined)
        local = np.searchsorted(ends, indices, side="right")
        if bad:
            indices = self._replace(source, indices, epochs, np.isin(local, bad))
            local = np.searchsorted(ends, indices, side="right")
        firsts = np.concatenate(([0], ends[:-1]))
        return local + self._first_shard[source], (indices - firsts[local]) * self.seq_len

    def _replace(self, source: int, indices: Indices, epochs: Indices, lost: npt.NDArray[np.bool_]) -> Indices:
        """Replace each sequence of a quarantined shard by another one, chosen by a hash."""
        ends = self._ends[source]
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


def bytes_per_token(shards: Sequence[Shard]) -> float:
    """Return UTF-8 bytes of text per token of these shards."""
    return sum(shard.bytes for shard in shards) / max(1, sum(shard.tokens for shard in shards))
