"""Sources of samples: the k-th sample of a run, whatever the number of ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from ropewalk.datapipe.loader.dataset import OnCorrupt
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.loop.batch import IGNORE, Batch, pin_batch
from ropewalk.jobs.training.loop.documents import document_positions
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.group import Group


class Source(ABC):
    """Samples of a run. A sample is the unit that a global batch counts: a sequence, a pair of answers, a rollout.

    A source that generates its samples from the model overrides the three members at the end.
    """

    epoch_samples: int | None  # samples before the first one comes again; None: generated without end
    tokens_per_sample: int  # tokens that the model computes for a sample, padding included: the base of throughput and FLOPs

    @abstractmethod
    def read(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions: a pure function of (seed, position). The prefetch thread calls it."""

    def expect(self, positions: Sequence[int]) -> None:  # noqa: B027 - most sources read local files
        """Take note that these positions will be read soon. The prefetch thread calls it, several batches before `read`."""

    @abstractmethod
    def filler(self) -> Batch:
        """Return one sample whose labels are all IGNORE, for a rank that must join the others' collectives without a sample."""

    prefetchable = True  # False: the samples of a step exist only after `prepare`, so that they are not read ahead

    def prepare(self, state: TrainState) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Prepare the next step's samples. All ranks call it together before every step, also when samples are read ahead.

        Raises StopRequested if all ranks have agreed to stop; the loop then saves the state and leaves.
        """

    def committed(self, position: int, step: int) -> None:  # noqa: B027 - most sources keep no record
        """Take note that the checkpoint at `position` is committed. Called on rank 0, in the thread that saves."""


class TokenSource(Source):
    """Sequences of tokenized text; every token is a label of the one before it.

    With `document_start`, the token that begins each document, no token attends to another document. That is the one with
    which the document before ends, so that every token stays a label.
    """

    def __init__(self, loader: TokenLoader, *, in_order: bool = False, document_start: int | None = None) -> None:
        self.loader, self._in_order = loader, in_order  # in_order: as on disk, for validation
        self._document_start = document_start
        self.epoch_samples, self.tokens_per_sample = loader.sequences, loader.seq_len

    def read(self, positions: Sequence[int]) -> Batch:
        """Return the sequences at these positions: of the shuffled run, or in the order on disk (then a contiguous range)."""
        if self._in_order:
            return self._batch(torch.from_numpy(self.loader.in_order(positions[0], positions[-1] + 1)))
        return self._batch(torch.from_numpy(self.loader.read(positions)))

    def _batch(self, tokens: torch.Tensor) -> Batch:
        """Split sequences of T+1 tokens into inputs and labels: views of the same memory."""
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
        if self._document_start is not None:
            batch["position_ids"] = document_positions(batch["input_ids"], self._document_start)
        return batch

    def expect(self, positions: Sequence[int]) -> None:
        self.loader.expect(positions)

    def filler(self) -> Batch:
        batch = self._batch(torch.zeros(1, self.loader.seq_len + 1, dtype=torch.int64))
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}


def validation_loader(
    train: TokenLoader, sets: Sequence[DataSet], *, most: int, on_corrupt: OnCorrupt = "error"
) -> TokenLoader | None:
    """Load at most `most` validation sequences of those data sets of a run that have any; None if there are none."""
    usable = [
        data_set
        for data_set, manifest in zip(sets, train.manifests, strict=True)
        if manifest.table.validation.longest > train.seq_len
    ]
    if not usable:
        return None
    return TokenLoader(
        usable,
        seq_len=train.seq_len,
        seed=train.seed,
        split="validation",
        most=most,
        on_corrupt=on_corrupt,
        options=train.options,
    )


def check_sizes(group: Group, *loaders: TokenLoader | None) -> None:
    """Raise CorruptShardError on every rank if a shard is missing or has another size; rank 0 alone looks."""

    def check() -> None:
        for loader in loaders:
            if loader is not None:
                loader.check_sizes()

    on_main(group, check)


def reader_for(device: torch.device, read: Callable[[Sequence[int]], Batch]) -> Callable[[Sequence[int]], Batch]:
    """Make `read` return pinned memory for a GPU, so that the step need not wait for the copy."""

    def read_pinned(positions: Sequence[int]) -> Batch:
        # the current device is per thread: the prefetch thread would pin memory through GPU 0
        torch.cuda.set_device(device)
        return pin_batch(read(positions))

    return read_pinned if device.type == "cuda" else read
