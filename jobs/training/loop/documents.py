"""Several documents in one row of a batch: their positions, and the check that a model keeps them apart."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import masking_utils

from ropewalk.cluster.errors import ConfigError
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

_STRAYS = 0.05  # tolerance, relative to the spread of the logits: far below the effect of a wrong position
_LENGTH = 9  # tokens of a test document
_NOISE = 4  # tolerance, times the rounding error if that is larger: in bf16 it grows with the layers


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


def document_positions(tokens_BT: torch.Tensor, start: int) -> torch.Tensor:
    """Return the position of each token in its document, [B, T]; documents begin with the token `start`, or with the row."""
    index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    return index_T - torch.where(tokens_BT == start, index_T, 0).cummax(dim=1).values


@torch.no_grad()
def require_separate(model: nn.Module, group: Group, key: str) -> None:
    """Raise ConfigError, naming the key, unless the model computes packed documents as if each stood alone.

    All ranks call it together.

    Tested on arbitrary tokens: changing one document must not change the other at all, and the second document must compute
    what it does alone, up to the rounding error of a first document, which no later one can change.
    """
    was_training = model.training
    model.eval()
    size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    first, other, second = (torch.arange(start, start + _LENGTH, device=group.device) * 7 % size for start in (1, 2, 5))
    try:
        alone = _logits(model, second)
        packed, changed = _logits(model, first, second)[:, _LENGTH:], _logits(model, other, second)[:, _LENGTH:]
        leading = _logits(model, second, other)[:, :_LENGTH]
    except (TypeError, ValueError):  # the model takes no position_ids
        alone, packed, changed, leading = torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(1)
    finally:
        reshard_all(model)
        model.train(was_training)
    spread = float(alone.float().std()) + 1e-6
    strays, noise = (float((logits - alone).abs().max()) / spread for logits in (packed, leading))
    if not torch.equal(packed, changed) or strays > max(_STRAYS, _NOISE * noise):
        raise ConfigError(
            f"{key}: {type(model).__name__} does not separate packed documents: one would attend to the other (they differ by"
            f" {strays:.2g} of the spread of its logits); set {key}=false"
        )


def _logits(model: nn.Module, *documents: torch.Tensor) -> torch.Tensor:
    """Compute the logits of these documents, packed: [1, T, V]."""
    position_ids = torch.cat([torch.arange(len(document), device=document.device) for document in documents])[None]
    logits: torch.Tensor = model(input_ids=torch.cat(documents)[None], position_ids=position_ids, use_cache=False).logits
    return logits
