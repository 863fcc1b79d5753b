"""Samples of conversations: several packed into a sequence, each computed as if it stood alone, or one each."""

import logging
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.chat.dataset import ChatSet
from ropewalk.datapipe.chat.packs import Packs
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.source import Source

log = logging.getLogger(__name__)

OnLong = Literal["drop", "cut", "error"]


def pack(documents: Iterable[tuple[torch.Tensor, torch.Tensor]], length: int) -> Batch:
    """Make one sample of documents (input_ids [T], labels [T], already shifted), padded to `length` tokens without labels.

    `position_ids` start at 0 in every document. Without an attention mask transformers takes that for a document border
    and lets no token attend across it: block-diagonal attention. Models without rotary positions or with a recurrence
    (OPT, BLOOM, Mamba) do not, and must not get packed samples. Raises DataError if the documents do not fit.
    """
    parts = list(documents)
    spare = length - sum(len(input_ids) for input_ids, _ in parts)
    if spare < 0:
        raise DataError(f"a packed sample of {length} tokens: its documents have {length - spare}; pack fewer, or shorten them")
    if spare:
        padding = torch.zeros(spare, dtype=torch.int64)
        parts.append((padding, torch.full_like(padding, IGNORE)))
    return {
        "input_ids": torch.cat([input_ids for input_ids, _ in parts])[None],
        "labels": torch.cat([labels for _, labels in parts])[None],
        "position_ids": torch.cat([torch.arange(len(input_ids)) for input_ids, _ in parts])[None],
    }


class ConversationSource(Source):
    """The conversations of a split. A sample has at most `seq_len` positions; the last token of each needs none."""

    def __init__(self, conversations: ChatSet, *, seq_len: int, seed: int, packed: bool, on_long: OnLong = "drop") -> None:
        self.conversations, self.seq_len, self.packed = conversations, seq_len, packed
        positions = conversations.lengths - 1
        long = np.flatnonzero(positions > seq_len)
        if len(long) and on_long == "error":
            raise DataError(
                f"conversation {conversations.name(int(long[0]))!r} has {int(positions[long[0]]) + 1} tokens, and {len(long)} are"
                f" longer than seq_len={seq_len}; raise seq_len, or set on_long to drop or cut"
            )
        usable = positions >= 1
        usable[long] = [on_long == "cut" and self._is_trainable(int(index)) for index in long]
        self.num_long, self.num_cut = len(long), int(usable[long].sum())
        self._usable = np.flatnonzero(usable)
        if not len(self._usable):
            raise DataError(f"all {len(long)} conversations are longer than seq_len={seq_len}; raise seq_len, or set on_long=cut")
        self.packs = Packs(np.minimum(positions[self._usable], seq_len), seq_len, seed, packed=packed)
        self.epoch_samples = len(self.packs)
        self.tokens_per_sample = seq_len if packed else max(1, round(float(self.packs.sizes.mean())))

    def _is_trainable(self, index: int) -> bool:
        """Return True if a conversation has trained tokens left when it is cut."""
        return bool(self.conversations[index][1][1 : self.seq_len + 1].any())

    def index_of(self, number: int) -> int:
        """Return the index in the split of a conversation of `packs`."""
        return int(self._usable[number])

    def read(self, positions: Sequence[int]) -> Batch:
        samples = [[self._document(self.index_of(document)) for document in self.packs[position]] for position in positions]
        if not samples:
            return {name: tensor[:0] for name, tensor in self.filler().items()}
        longest = self.seq_len if self.packed else max(sum(len(ids) for ids, _ in sample) for sample in samples)
        packed_samples = [pack(sample, longest) for sample in samples]
        batch = {name: torch.cat([document[name] for document in packed_samples]) for name in packed_samples[0]}
        return batch if self.packed else {name: batch[name] for name in ("input_ids", "labels")}

    def filler(self) -> Batch:
        empty = pack([], 8)
        return empty if self.packed else {name: empty[name] for name in ("input_ids", "labels")}

    def _document(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, learnt = self.conversations[index]
        ids = torch.from_numpy(tokens[: self.seq_len + 1].astype(np.int64))
        counted = torch.from_numpy(learnt[1 : self.seq_len + 1].copy())
        return ids[:-1], ids[1:].masked_fill(~counted, IGNORE)
