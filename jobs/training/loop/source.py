"""Where samples come from: the k-th sample of a run, whatever the number of ranks."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ropewalk.datapipe.loader.dataset import OnCorrupt
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.loop.batch import IGNORE, Batch, pinned


class Source(Protocol):
    """A sample is what one optimizer step counts: a sequence, a pair of answers, a prompt with its group of rollouts."""

    @property
    def epoch_samples(self) -> int | None:
        """Samples before the first one comes again; None for samples that are generated without end."""
        ...

    @property
    def tokens_per_sample(self) -> int:
        """Tokens that the model computes for a sample, padding included: what throughput and FLOPs count."""
        ...

    def read(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions; a pure function of (seed, position). A thread calls it that reads ahead."""
        ...

    def filler(self) -> Batch:
        """One sample whose labels are all IGNORE, for a rank that must join the others' collectives without a sample."""
        ...


class TokenSource:
    """Sequences of tokenized text; every token is a label of the one before it."""

    def __init__(self, loader: TokenLoader, *, in_order: bool = False) -> None:
        self.loader, self._in_order = loader, in_order  # in_order: as they lie on disk, for validation

    @property
    def epoch_samples(self) -> int:
        """Sequences of one epoch of all data sets."""
        return self.loader.sequences

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of a sequence."""
        return self.loader.seq_len

    def read(self, positions: Sequence[int]) -> Batch:
        """The sequences at these positions: of the shuffled run, or of the split as it lies on disk (then one stretch)."""
        if self._in_order:
            return _shifted(torch.from_numpy(self.loader.in_order(positions[0], positions[-1] + 1)))
        return _shifted(torch.from_numpy(self.loader.read(positions)))

    def filler(self) -> Batch:
        """One sequence without labels."""
        tokens_1T = torch.zeros(1, self.loader.seq_len, dtype=torch.int64)
        return {"input_ids": tokens_1T, "labels": torch.full_like(tokens_1T, IGNORE)}


def _shifted(tokens: torch.Tensor) -> Batch:
    """Sequences with one token more than they have labels, as inputs and labels: views of the same memory."""
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def validation_loader(
    train: TokenLoader, sets: Sequence[DataSet], *, most: int, on_corrupt: OnCorrupt = "error"
) -> TokenLoader | None:
    """At most so many validation sequences of those data sets of a run that have one; None where none has."""
    usable = [
        one
        for one, manifest in zip(sets, train.manifests, strict=True)
        if any(shard.tokens > train.seq_len for shard in manifest.of_split("validation"))
    ]
    if not usable:
        return None
    return TokenLoader(usable, seq_len=train.seq_len, seed=train.seed, split="validation", most=most, on_corrupt=on_corrupt)


def reader_for(device: torch.device, read: Callable[[Sequence[int]], Batch]) -> Callable[[Sequence[int]], Batch]:
    """`read` with its result in pinned memory where it goes to a GPU: only then does the step not wait for the copy."""

    def read_pinned(positions: Sequence[int]) -> Batch:
        # the current device is each thread's own, and another thread reads ahead: it would pin by way of GPU 0
        torch.cuda.set_device(device)
        return pinned(read(positions))

    return read_pinned if device.type == "cuda" else read
