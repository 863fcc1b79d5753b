"""Several documents in one sequence of fixed length, each computed as if it stood alone."""

from collections.abc import Iterable

import torch

from cluster.errors import DataError
from jobs.training.batch import IGNORE, Batch


def pack(documents: Iterable[tuple[torch.Tensor, torch.Tensor]], length: int) -> Batch:
    """One sample out of documents (input_ids [T], labels [T], shifted already), padded to `length` tokens without labels.

    `position_ids` begin at 0 in every document. Given no attention mask, transformers takes that for the border of a
    document and lets no token attend across it: block-diagonal attention. Its models without rotary positions or with
    a recurrence (OPT, BLOOM, Mamba) do not, and must not be given packed samples. Raises DataError where the documents
    do not fit.
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
