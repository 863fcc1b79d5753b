"""What travels from a source of samples to an objective: tensors by name, all with the sample dimension first."""

import torch

IGNORE = -100  # a label that no loss counts, as everywhere in the field

# Keys are what the model and the objective take by name. `labels[b, t]` is the token that follows `input_ids[b, t]`:
# labels are shifted already, so that a document's last token, a prompt or padding can be left out of the loss.
Batch = dict[str, torch.Tensor]


def num_samples(batch: Batch) -> int:
    """How many samples a batch holds; may be 0."""
    return len(next(iter(batch.values())))


def rows(batch: Batch, which: slice) -> Batch:
    """Some samples of a batch, as views."""
    return {name: tensor[which] for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on this device; from pinned memory the copy does not block."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def pinned(batch: Batch) -> Batch:
    """The batch in pinned memory, from which a GPU copies by itself."""
    return {name: tensor.contiguous().pin_memory() for name, tensor in batch.items()}
