"""Pairs and labelled answers as samples: the k-th of a run is a pure function of (seed, k)."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ropewalk.datapipe.loader.order import permute
from ropewalk.jobs.training.align.preferences.prepare import ROWS_A_BATCH
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.source import Source

# B samples, A answers a sample, T tokens

Ids = torch.Tensor  # [T]


class Rows:
    """The rows of a prepared split, by number; memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: list[pa.RecordBatch] = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._size: int = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        return self._size

    def value(self, row: int, name: str) -> Any:
        return self._batches[row // ROWS_A_BATCH].column(name)[row % ROWS_A_BATCH].as_py()

    def ids(self, row: int, name: str) -> Ids:
        values = self._batches[row // ROWS_A_BATCH].column(name)[row % ROWS_A_BATCH].values
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype(np.int64))


class PreferenceSource(Source):
    """Rows as samples: `input_ids` and `labels` [B, A, T], labels IGNORE in the prompt; `reference` [B, A] if it is precomputed.

    Shuffled anew each epoch, or in the order of the rows. Sequences are padded at their end, to which no earlier token attends:
    a causal model needs no attention mask.
    """

    def __init__(
        self, rows: Rows, *, seed: int, tokens_per_sample: int, in_order: bool = False, reference: torch.Tensor | None = None
    ) -> None:
        self.rows, self.tokens_per_sample, self.reference = rows, tokens_per_sample, reference
        self._seed, self._in_order, self.epoch_samples = seed, in_order, len(rows)

    def row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.rows))
        return index if self._in_order else int(permute(np.array([index]), len(self.rows), self._seed, epoch)[0])

    def read(self, positions: Sequence[int]) -> Batch:
        if not positions:
            return {name: tensor[:0] for name, tensor in self.filler().items()}
        rows = [self.row(position) for position in positions]
        batch = {**stack_samples([self._sequences(row) for row in rows]), **self._extra_tensors(rows)}
        return batch if self.reference is None else {**batch, "reference": self.reference[rows]}

    def filler(self) -> Batch:
        inputs = torch.zeros(1, 2, 1, dtype=torch.int64)
        batch = {"input_ids": inputs, "labels": torch.full_like(inputs, IGNORE), **self._extra_tensors([0])}
        return batch if self.reference is None else {**batch, "reference": torch.zeros(1, 2, dtype=torch.float64)}

    @abstractmethod
    def _sequences(self, row: int) -> list[tuple[Ids, Ids]]:
        """Return each (prompt, answer) of the sample."""

    def _extra_tensors(self, rows: list[int]) -> Batch:
        return {}


class PairSource(PreferenceSource):
    """Pairs as samples of two answers, the preferred one first."""

    def _sequences(self, row: int) -> list[tuple[Ids, Ids]]:
        prompt = self.rows.ids(row, "prompt")
        return [(prompt, self.rows.ids(row, name)) for name in ("chosen", "rejected")]


class LabelledSource(PreferenceSource):
    """Labelled answers as samples, each with the answer of another prompt to estimate the KL (2402.01306, section 4.1).

    That answer is from the next row with another prompt: a function of the row alone. It is cut to fit into `seq_len` together
    with the prompt.
    """

    def __init__(self, rows: Rows, *, seq_len: int, **keywords: Any) -> None:
        super().__init__(rows, **keywords)
        self._seq_len = seq_len

    def _sequences(self, row: int) -> list[tuple[Ids, Ids]]:
        prompt = self.rows.ids(row, "prompt")
        other = self.rows.ids(self._next_with_another_prompt(row, prompt), "completion")
        return [(prompt, self.rows.ids(row, "completion")), (prompt, other[: max(1, self._seq_len - len(prompt))])]

    def _next_with_another_prompt(self, row: int, prompt: Ids) -> int:
        for step in range(1, len(self.rows)):
            other = (row + step) % len(self.rows)
            if not torch.equal(self.rows.ids(other, "prompt"), prompt):
                return other
        return (row + 1) % len(self.rows)  # all rows have the same prompt: use any other answer

    def _extra_tensors(self, rows: list[int]) -> Batch:
        return {"desirable": torch.tensor([bool(self.rows.value(row, "label")) for row in rows])}


def stack_samples(samples: Sequence[Sequence[tuple[Ids, Ids]]]) -> Batch:
    """Stack samples of (prompt, answer) as input_ids and shifted labels, [B, A, T], padded to the longest."""
    length = max(len(prompt) + len(answer) for sample in samples for prompt, answer in sample) - 1
    shape = (len(samples), len(samples[0]), length)
    inputs, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE, dtype=torch.int64)
    for row, sample in enumerate(samples):
        for column, (prompt, answer) in enumerate(sample):
            tokens = torch.cat([prompt, answer])
            inputs[row, column, : len(tokens) - 1] = tokens[:-1]
            labels[row, column, len(prompt) - 1 : len(tokens) - 1] = answer
    return {"input_ids": inputs, "labels": labels}
