"""Pairs and labelled answers as samples: the k-th of a run is a pure function of (seed, k)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from datapipe.loader.order import permute
from jobs.align.preferences.prepare import ROWS_A_BATCH
from jobs.training.batch import IGNORE, Batch

# B samples, A answers a sample (2 of a pair, 1 of a labelled answer), T tokens


class Rows:
    """The rows of a prepared split, by number; memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: list[pa.RecordBatch] = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._size: int = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        return self._size

    def value(self, row: int, name: str) -> Any:
        """A plain value of a row."""
        return self._batches[row // ROWS_A_BATCH].column(name)[row % ROWS_A_BATCH].as_py()

    def ids(self, row: int, name: str) -> torch.Tensor:
        """Token ids of a row, [T]."""
        values = self._batches[row // ROWS_A_BATCH].column(name)[row % ROWS_A_BATCH].values
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype(np.int64))


class Order:
    """Which row the k-th sample is: shuffled anew each epoch, or as the rows lie on disk."""

    def __init__(self, size: int, seed: int, *, in_order: bool) -> None:
        self.size, self._seed, self._in_order = size, seed, in_order

    def row(self, position: int) -> int:
        """The row of a sample."""
        epoch, index = divmod(position, self.size)
        return index if self._in_order else int(permute(np.array([index]), self.size, self._seed, epoch)[0])


class PairSource:
    """A pair is a sample: `input_ids` and `labels` [B, 2, T], the preferred answer first; labels are IGNORE in the prompt.

    Sequences are padded at their end, which no token before attends to: a causal model needs no attention mask.
    """

    def __init__(self, rows: Rows, *, seed: int, tokens_per_sample: int, in_order: bool = False) -> None:
        self.rows, self.order = rows, Order(len(rows), seed, in_order=in_order)
        self.tokens_per_sample = tokens_per_sample

    @property
    def epoch_samples(self) -> int:
        """Pairs of an epoch."""
        return len(self.rows)

    def read(self, positions: Sequence[int]) -> Batch:
        """The pairs at these positions."""
        if not positions:
            return {name: tensor[:0] for name, tensor in self.filler().items()}
        rows = [self.order.row(position) for position in positions]
        batch = stacked([[self._answer(row, name) for name in ("chosen", "rejected")] for row in rows])
        return {**batch, "row": torch.tensor(rows)}

    def filler(self) -> Batch:
        """A pair without labels."""
        return {**empty_sample(2), "row": torch.zeros(1, dtype=torch.int64)}

    def _answer(self, row: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.ids(row, "prompt"), self.rows.ids(row, name)


def stacked(samples: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> Batch:
    """Samples of (prompt, answer) as input_ids and shifted labels, [B, A, T], padded to the longest."""
    length = max(len(prompt) + len(answer) for sample in samples for prompt, answer in sample) - 1
    shape = (len(samples), len(samples[0]), length)
    inputs, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE, dtype=torch.int64)
    for row, sample in enumerate(samples):
        for column, (prompt, answer) in enumerate(sample):
            tokens = torch.cat([prompt, answer])
            inputs[row, column, : len(tokens) - 1] = tokens[:-1]
            labels[row, column, len(prompt) - 1 : len(tokens) - 1] = answer
    return {"input_ids": inputs, "labels": labels}


def empty_sample(answers: int) -> Batch:
    """One sample of padding alone, without labels."""
    inputs = torch.zeros(1, answers, 1, dtype=torch.int64)
    return {"input_ids": inputs, "labels": torch.full_like(inputs, IGNORE)}
