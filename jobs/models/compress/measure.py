"""Quality of a variant in its engine: bits per byte of held-out text, and KL from the dense model, per sequence.

T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ropewalk.jobs.models.compress.artifacts import LogProbModel
from ropewalk.jobs.results.statistics import mean_error

LOG_2 = math.log(2)


class Reference:
    """Log-probabilities of the dense model for every sequence, on disk while variants are compared with them."""

    def __init__(self, path: Path, sequences: Sequence[list[int]], dense: LogProbModel, vocabulary: int) -> None:
        """Compute the dense model's log-probabilities; `sequences` have T + 1 tokens each."""
        self.sequences = sequences
        shape = (len(sequences), len(sequences[0]) - 1, vocabulary)
        self._log_probs = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for index, tokens in enumerate(sequences):
            self._log_probs[index] = dense.log_probabilities(tokens[:-1]).numpy()
        self.nats = [_nats(self[index], tokens) for index, tokens in enumerate(sequences)]

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._log_probs[index])


@contextmanager
def reference(path: Path, sequences: Sequence[list[int]], dense: LogProbModel, vocabulary: int) -> Iterator[Reference]:
    """Provide the dense model's log-probabilities within the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield Reference(path, sequences, dense, vocabulary)
    finally:
        path.unlink(missing_ok=True)


def quality(variant: LogProbModel, dense: Reference, bytes_per_token: float) -> dict[str, Any]:
    """Return bits per byte, the excess over dense, and KL(dense || variant) in nats per token, with standard errors."""
    nats, divergences = [], []
    for index, tokens in enumerate(dense.sequences):
        theirs_TV = variant.log_probabilities(tokens[:-1])
        ours_TV = dense[index]
        nats.append(_nats(theirs_TV, tokens))
        divergences.append(float((ours_TV.exp() * (ours_TV - theirs_TV)).sum(-1).double().mean()))
    factor = 1 / LOG_2 / bytes_per_token
    bits = [value * factor for value in nats]
    more = [value - other * factor for value, other in zip(bits, dense.nats, strict=True)]
    figures: dict[str, Any] = {}
    for name, values in (("bits_per_byte", bits), ("more_bits_per_byte", more), ("kl", divergences)):
        figures[name] = math.fsum(values) / len(values)
        figures["standard_error" if name == "bits_per_byte" else f"{name}_standard_error"] = mean_error(values, None)
    return figures


def _nats(log_probabilities_TV: torch.Tensor, tokens: list[int]) -> float:
    """Return the mean negative log-likelihood of a sequence's tokens after its first."""
    following_T1 = torch.tensor(tokens[1:])[:, None]
    return -float(log_probabilities_TV.gather(1, following_T1).double().mean())
