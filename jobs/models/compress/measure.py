"""How good a variant is, in its engine: bits per byte of held-out text, and KL from the dense model, sequence by sequence.

T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ropewalk.jobs.models.compress.artifacts import Asked
from ropewalk.jobs.results.statistics import mean_error

LOG_2 = math.log(2)


class Reference:
    """What the dense model says of every sequence, kept on disk as long as variants are compared with it."""

    def __init__(self, path: Path, sequences: Sequence[list[int]], asked: Asked, vocabulary: int) -> None:
        """Ask the dense model; `sequences` are T + 1 tokens each."""
        self.sequences = sequences
        shape = (len(sequences), len(sequences[0]) - 1, vocabulary)
        self._kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for place, tokens in enumerate(sequences):
            self._kept[place] = asked.log_probabilities(tokens[:-1]).numpy()
        self.nats = [_nats(self[place], tokens) for place, tokens in enumerate(sequences)]

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.from_numpy(self._kept[place])


@contextmanager
def reference(path: Path, sequences: Sequence[list[int]], asked: Asked, vocabulary: int) -> Iterator[Reference]:
    """The dense model's word on each sequence while the block lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield Reference(path, sequences, asked, vocabulary)
    finally:
        path.unlink(missing_ok=True)


def quality(asked: Asked, dense: Reference, bytes_per_token: float) -> dict[str, Any]:
    """Bits per byte, how many more than dense, and KL(dense || variant) in nats a token; each with its standard error."""
    nats, divergences = [], []
    for place, tokens in enumerate(dense.sequences):
        theirs_TV = asked.log_probabilities(tokens[:-1])
        ours_TV = dense[place]
        nats.append(_nats(theirs_TV, tokens))
        divergences.append(float((ours_TV.exp() * (ours_TV - theirs_TV)).sum(-1).double().mean()))
    factor = 1 / LOG_2 / bytes_per_token
    bits = [value * factor for value in nats]
    more = [value - other * factor for value, other in zip(bits, dense.nats, strict=True)]
    found: dict[str, Any] = {}
    for name, values in (("bits_per_byte", bits), ("more_bits_per_byte", more), ("kl", divergences)):
        found[name] = math.fsum(values) / len(values)
        found["standard_error" if name == "bits_per_byte" else f"{name}_standard_error"] = mean_error(values, None)
    return found


def _nats(log_probabilities_TV: torch.Tensor, tokens: list[int]) -> float:
    """Mean negative log-likelihood of a sequence's tokens after its first."""
    following_T1 = torch.tensor(tokens[1:])[:, None]
    return -float(log_probabilities_TV.gather(1, following_T1).double().mean())
