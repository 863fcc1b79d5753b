"""Batches: tensors by name, all with the sample dimension first, from a source of samples to an objective."""

import torch

IGNORE = -100  # a label that no loss counts, the convention of torch and transformers

# Keys are the argument names of the model and the objective. `labels[b, t]` is the token that follows `input_ids[b, t]`:
# labels are shifted already, so that a document's last token, a prompt or padding can be left out of the loss.
Batch = dict[str, torch.Tensor]


def num_samples(batch: Batch) -> int:
    """Return the number of samples of a batch; may be 0."""
    return len(next(iter(batch.values())))


def rows(batch: Batch, which: slice) -> Batch:
    """Return some samples of a batch, as views."""
    return {name: tensor[which] for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device; from pinned memory the copy does not block."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def pin_batch(batch: Batch) -> Batch:
    """Copy a batch to pinned memory, from which a GPU copies asynchronously."""
    return {name: tensor.contiguous().pin_memory() for name, tensor in batch.items()}
