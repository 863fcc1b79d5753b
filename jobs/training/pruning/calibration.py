"""Calibration text: sequences of a data set, the k-th a function of (seed, k)."""

from collections.abc import Iterator

import torch

from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.loop.token_data import Data, weighted


def calibration_batches(
    data: Data, *, seq_len: int, sequences: int, seed: int = 0, micro_batch: int = 4, split: str = "train"
) -> Iterator[torch.Tensor]:
    """Token ids [B, seq_len] of sequences 0 .. sequences - 1 of the shuffled split, at most `micro_batch` at once.

    They are the same whoever asks, and the first ones do not change with how many there are.
    """
    sources = [Source(one.path, one.weight) for one in weighted(data)]
    loader = TokenLoader(sources, seq_len=seq_len, seed=seed, split=split)
    for start in range(0, sequences, micro_batch):
        positions = range(start, min(start + micro_batch, sequences))
        yield torch.from_numpy(loader.read(positions))[:, :-1]
