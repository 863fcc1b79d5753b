"""Packing: several documents in one sequence of fixed length, each computed as if it stood alone."""

from collections.abc import Iterable

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

_STRAYS = 0.05  # tolerance, relative to the spread of the logits: far below the effect of a wrong position
_LENGTH = 9  # tokens of a test document
_NOISE = 4  # tolerance, times the rounding error if that is larger: in bf16 it grows with the layers


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


@torch.no_grad()
def require_separate(model: nn.Module, group: Group) -> None:
    """Raise ConfigError unless the model computes packed documents as if each stood alone. All ranks call it together.

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
            f"packing: {type(model).__name__} does not separate packed documents: one would attend to the other (they differ by"
            f" {strays:.2g} of the spread of its logits); set packing=false"
        )


def _logits(model: nn.Module, *documents: torch.Tensor) -> torch.Tensor:
    """Compute the logits of these documents, packed: [1, T, V]."""
    position_ids = torch.cat([torch.arange(len(document), device=document.device) for document in documents])[None]
    logits: torch.Tensor = model(input_ids=torch.cat(documents)[None], position_ids=position_ids, use_cache=False).logits
    return logits
