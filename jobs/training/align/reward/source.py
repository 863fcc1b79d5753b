"""Pairs as whole sequences: what a model is given that scores them."""

from collections.abc import Sequence
from typing import Any

import torch

from ropewalk.jobs.training.align.preferences.source import PairSource, Rows
from ropewalk.jobs.training.loop.batch import Batch

# B pairs, T tokens


class ScoredSource(PairSource):
    """Pairs: `input_ids` [B, 2, T], the preferred answer first, padded at the end; `lengths` and `answers` [B, 2] in tokens.

    A model of transformers scores a sequence at its last token that is not padding.
    """

    def __init__(self, rows: Rows, *, padding: int, **keywords: Any) -> None:
        super().__init__(rows, **keywords)
        self._padding = padding

    def read(self, positions: Sequence[int]) -> Batch:
        """The pairs at these positions."""
        if not positions:
            return {name: tensor[:0] for name, tensor in self.filler().items()}
        pairs = [self._sequences(self.row(position)) for position in positions]
        tokens = [[torch.cat([prompt, answer]) for prompt, answer in pair] for pair in pairs]
        lengths = torch.tensor([[len(one) for one in both] for both in tokens])
        inputs = torch.full((len(pairs), 2, int(lengths.max())), self._padding)
        for row, both in enumerate(tokens):
            for column, one in enumerate(both):
                inputs[row, column, : len(one)] = one
        answers = torch.tensor([[len(answer) for _, answer in pair] for pair in pairs])
        return {"input_ids": inputs, "lengths": lengths, "answers": answers}

    def filler(self) -> Batch:
        """A pair of no length."""
        nothing = torch.zeros(1, 2, dtype=torch.int64)
        return {"input_ids": torch.full((1, 2, 1), self._padding), "lengths": nothing, "answers": nothing}
