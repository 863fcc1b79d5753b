"""Shards of a data set as flat arrays of tokens, each verified when it is first opened."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ropewalk.cluster.errors import ConfigError, CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.shard_cache import cached_shard
from ropewalk.datapipe.manifest import Manifest, Shard, read_manifest

log = logging.getLogger(__name__)

Tokens = npt.NDArray[Any]  # uint16 or uint32, a view of the mapped file
OnCorrupt = Literal["error", "quarantine"]

REMEDY = "copy it again from its source, run `ropewalk run preprocess` again, or set on_corrupt=quarantine"


class Stream(Protocol):
    """Tokens of a shard as one sequence; slices are arrays."""

    def __getitem__(self, window: slice, /) -> Tokens: ...


class Pieces:
    """Tokens of a shard with several record batches as one sequence; slices across batches are copied."""

    def __init__(self, arrays: list[Tokens]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([len(a) for a in arrays])

    def __getitem__(self, window: slice, /) -> Tokens:
        start, stop = int(window.start), int(window.stop)
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, stop, side="left"))
        before = int(self.ends[first - 1]) if first else 0
        if first == last:
            return self.arrays[first][start - before : stop - before]
        joined: Tokens = np.concatenate(self.arrays[first : last + 1])[start - before : stop - before]
        return joined


class Dataset:
    """One split of a data set. Shards are opened at first use; with `quarantine` all are verified at the start.

    Raises DataError if there is no such data set or split, and CorruptShardError if a shard does not match the manifest,
    unless corrupt shards are quarantined.
    """

    def __init__(self, path: str, split: str = "train", on_corrupt: OnCorrupt = "error") -> None:
        if on_corrupt not in ("error", "quarantine"):
            raise ConfigError(f"on_corrupt: must be error or quarantine, not {on_corrupt!r}")
        self.root = StoragePath(path)
        self.manifest: Manifest = read_manifest(self.root)
        self.shards: tuple[Shard, ...] = self.manifest.of_split(split)
        if not self.shards:
            splits = ", ".join(sorted({s.split for s in self.manifest.shards})) or "none"
            raise DataError(
                f"{path}: no {split} split (it has: {splits}); run preprocess with validation_fraction above 0 to get both"
            )
        self.streams: list[Stream | None] = [None] * len(self.shards)
        self.quarantined: dict[int, str] = {}  # index of the shard → description of the problem
        if on_corrupt == "quarantine":
            self._quarantine()
        elif self.root.local is not None:
            for shard in self.shards:  # cheap, and detects missing shards before step 1
                self._check_size(shard, self.root.local / shard.path)

    def open(self, number: int) -> Stream:
        """Open the tokens of a shard and verify it at first use. Raises CorruptShardError."""
        stream = self.streams[number]
        if stream is None:
            stream = self.streams[number] = self._open(self.shards[number])
        return stream

    def _open(self, shard: Shard) -> Stream:
        path = cached_shard(self.root, shard) if self.root.local is None else self.root.local / shard.path
        self._check_size(shard, path)
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer()
        checksum = f"xxh3:{xxhash.xxh3_128_hexdigest(buffer)}"
        if checksum != shard.checksum:
            raise CorruptShardError(f"{self._name(shard)}: expected checksum {shard.checksum}, found {checksum}; {REMEDY}")
        return self._tokens(shard, buffer)

    def _tokens(self, shard: Shard, buffer: Any) -> Stream:
        try:
            reader = pa.ipc.open_file(buffer)
            columns = [reader.get_batch(i).column("tokens") for i in range(reader.num_record_batches)]
            # Arrow's to_numpy imports pandas, which takes half a second in every rank
            arrays = [np.from_dlpack(column.flatten()) for column in columns]
        except (pa.ArrowException, KeyError) as error:
            raise CorruptShardError(f"{self._name(shard)}: not an Arrow file of tokens: {error}; {REMEDY}") from None
        count, kinds = sum(len(a) for a in arrays), {a.dtype.name for a in arrays}
        if count != shard.tokens or kinds - {self.manifest.token_type}:
            raise CorruptShardError(
                f"{self._name(shard)}: expected {shard.tokens} tokens of {self.manifest.token_type}, "
                f"found {count} of {', '.join(sorted(kinds))}; {REMEDY}"
            )
        return arrays[0] if len(arrays) == 1 else Pieces(arrays)

    def _check_size(self, shard: Shard, path: Path) -> None:
        try:
            size = os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptShardError(f"{self._name(shard)}: expected {shard.size} bytes, found no file; {REMEDY}") from None
        if size != shard.size:
            raise CorruptShardError(f"{self._name(shard)}: expected {shard.size} bytes, found {size}; {REMEDY}")

    def _name(self, shard: Shard) -> str:
        return f"{self.root.url}/{shard.path}"

    def _quarantine(self) -> None:
        def problem(number: int) -> str | None:
            try:
                self.open(number)
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
