"""Samples with cached logits of the teacher."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.training.distill.cache import CHUNK, chunk_name
from ropewalk.jobs.training.distill.losses import ENTROPY, IDS, PROBABILITIES
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.chunks import Chunks
from ropewalk.jobs.training.loop.source import Source

# B samples, T tokens a sample, K tokens of a sparse teacher

_OPEN_CHUNKS = 8  # kept in memory: the samples of a step are consecutive


class CachedSource(Source):
    """The samples of another source, each with a few tokens of the teacher's distribution at each of its positions."""

    def __init__(self, source: Source, chunks: Chunks) -> None:
        self._source, self._chunks = source, chunks
        self.epoch_samples, self.tokens_per_sample = source.epoch_samples, source.tokens_per_sample
        self._chunk = lru_cache(maxsize=_OPEN_CHUNKS)(self._read_chunk)

    def read(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions, with the teacher's tokens padded to the largest number of any position."""
        batch = self._source.read(positions)
        logits = [self._logits_at(position) for position in positions]
        return {**batch, **_pad(logits, self.tokens_per_sample)}

    def filler(self) -> Batch:
        nothing = np.zeros(0, np.int64), np.zeros(0), np.zeros(self.tokens_per_sample, np.int64), np.zeros(self.tokens_per_sample)
        return {**self._source.filler(), **_pad([nothing], self.tokens_per_sample)}

    def _logits_at(self, position: int) -> tuple[np.ndarray, ...]:
        number, row = divmod(position, CHUNK)
        table = self._chunk(number)
        return tuple(table[name][row].values.to_numpy() for name in ("ids", "weights", "sizes", "entropy"))

    def _read_chunk(self, number: int) -> pa.Table:
        table = self._chunks.read(chunk_name(number))
        if table is None:
            path = f"{self._chunks.folder.url}/{chunk_name(number)}"
            raise DataError(f"{path}: the teacher's logits are missing or damaged; resume the run to compute them again")
        return table


def _pad(logits: Sequence[tuple[np.ndarray, ...]], tokens: int) -> Batch:
    most = max((int(sizes.max(initial=1)) for _, _, sizes, _ in logits), default=1)
    ids_BTK = np.zeros((len(logits), tokens, max(1, most)), np.int64)
    probabilities_BTK = np.zeros(ids_BTK.shape, np.float32)
    entropy_BT = np.zeros((len(logits), tokens), np.float32)
    places_K = np.arange(ids_BTK.shape[2])
    for number, (ids, weights, sizes, nats) in enumerate(logits):
        filled_TK = places_K < sizes.astype(np.int64)[:, None]
        ids_BTK[number][filled_TK] = ids
        probabilities_BTK[number][filled_TK] = weights
        entropy_BT[number] = nats
    probabilities_BTK /= np.maximum(probabilities_BTK.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
    arrays = {IDS: ids_BTK, PROBABILITIES: probabilities_BTK, ENTROPY: entropy_BT}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
