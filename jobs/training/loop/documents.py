"""Documents of a batch: whether its rows hold several is known here, and need not be read from a device in each pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import masking_utils


@contextmanager
def known_documents(inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Run a model on `inputs`: rows hold several documents if there are `position_ids`, which start at 0 in each.

    transformers reads `position_ids`, also its own, from the device in each forward pass, which waits for all work before it.
    On a CPU, where reading is cheap, it does so for batches that have them: rows of one document need no mask.
    """
    positions, before = inputs.get("position_ids"), masking_utils.find_packed_sequence_indices
    if positions is None or positions.device.type != "cpu":
        masking_utils.find_packed_sequence_indices = _no_documents if positions is None else _document_numbers
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _no_documents(position_ids: torch.Tensor) -> None:
    return None


def _document_numbers(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the number of each token's document in its row, [B, T]."""
    return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
