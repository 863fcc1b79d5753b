"""Read a data set of conversations: the tokens of each, and the mask of tokens to train on (`learnt`)."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.errors import CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.config import KIND
from ropewalk.datapipe.loader.shard_cache import cached_file, read_shards
from ropewalk.datapipe.manifest import Manifest, Shard, Split, checksum_of_file, read_manifest


def is_chat_set(manifest: Manifest) -> bool:
    """Return True for a data set of conversations."""
    return KIND in manifest.config


class ChatSet:
    """Conversations of one split, in the order of the input. Raises DataError, CorruptShardError."""

    def __init__(self, path: str, split: Split) -> None:
        self.root = StoragePath(path)
        self.manifest = read_manifest(self.root)
        if not is_chat_set(self.manifest):
            raise DataError(f"{path}: holds text, not conversations; train on it with pretrain, or use conversations")
        tables = [self._open(shard) for shard in read_shards(self.root, self.manifest).of_split(split)]
        parts = [_Part(batch) for table in tables for batch in table]
        self._parts = [part for part in parts if part.count]
        self._ends = np.cumsum([part.count for part in self._parts], dtype=np.int64)
        self.lengths: NDArray[np.int64] = _concatenate([part.lengths for part in self._parts])
        self.learnt_bytes = sum(int(part.batch.column("learnt_bytes").to_numpy().sum()) for part in self._parts)
        self.num_learnt = sum(int(part.learnt.sum()) for part in self._parts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the tokens of a conversation, and the mask of tokens to train on."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        window = slice(int(part.offsets[row]), int(part.offsets[row + 1]))
        return part.tokens[window], part.learnt[window]

    def name(self, index: int) -> str:
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        return str(self._parts[number].batch.column("id")[row].as_py())

    def _open(self, shard: Shard) -> list[Any]:
        local = self.root.local
        path = cached_file(self.root, shard.path, shard.checksum) if local is None else local / shard.path
        try:
            if checksum_of_file(StoragePath(path.parent), path.name) != shard.checksum:
                raise CorruptShardError(f"{self.root.url}/{shard.path}: does not match its checksum; prepare the data again")
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file.read_buffer())
        except FileNotFoundError:
            raise CorruptShardError(f"{self.root.url}/{shard.path}: no such file; prepare the data again") from None
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


class _Part:
    """One record batch as flat arrays."""

    def __init__(self, batch: Any) -> None:
        self.batch, self.count = batch, batch.num_rows
        self.offsets = np.from_dlpack(batch.column("tokens").offsets)
        first = int(self.offsets[0]) if self.count else 0
        self.tokens = np.from_dlpack(batch.column("tokens").flatten())
        self.learnt = np.from_dlpack(batch.column("learnt").flatten()).astype(np.bool_)
        self.offsets = self.offsets - first
        self.lengths = np.diff(self.offsets)


def _concatenate(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
