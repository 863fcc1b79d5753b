"""One forward pass over many questions: contexts computed once, continuations that do not see each other."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.jobs.inference.scoring.prefixes import Beginning
from ropewalk.jobs.inference.scoring.requests import Branch, Piece

# what a model raises whose forward pass does not take such a row, or such padding: each architecture has its own
DOES_NOT_FIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # NotImplementedError is a RuntimeError

# B tokens of the beginning that all questions of a row share, T tokens of the row behind it, N predictions wanted, V vocabulary


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Questions laid one behind the other in one row, with the mask that keeps them apart."""

    input_ids: torch.Tensor  # [T]
    position_ids: torch.Tensor  # [T], from B
    mask: torch.Tensor | None  # [T, B + T], true where a token sees another; None: each sees all before it
    branches: tuple[Branch, ...]


def lay(found: Sequence[Piece], shared: int = 0) -> PackedRow:
    """Lay pieces into one row: each context, then its continuations, each of which sees the context and itself.

    The first `shared` tokens of all contexts are left out: they are a `Beginning`, which everything sees.
    """
    if len(found) == 1 and len(found[0].continuations) - sum(len(t) == 1 for _, t in found[0].continuations) <= 1:
        return _one_text(found[0], shared)
    total, longest = (of(piece.length - shared for piece in found) for of in (sum, max))
    ids, positions = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    mask, branches, at = torch.zeros(total, total, dtype=torch.bool), [], 0
    triangle = torch.ones(longest, longest, dtype=torch.bool).tril()
    for piece in found:
        size = len(piece.context) - shared
        ids[at : at + size] = torch.tensor(piece.context[shared:])
        positions[at : at + size] = torch.arange(size)
        mask[at : at + size, at : at + size] = triangle[:size, :size]
        begin, at = at, at + size
        for number, tokens in piece.continuations:
            own = len(tokens) - 1
            ids[at : at + own] = torch.tensor(tokens[:-1], dtype=torch.int64)
            positions[at : at + own] = torch.arange(size, size + own)
            mask[at : at + own, begin : begin + size] = True
            mask[at : at + own, at : at + own] = triangle[:own, :own]
            rows = (begin + size - 1, *range(at, at + own))
            branches.append(Branch(piece.unit, number, rows, tokens))
            at += own
    mask = torch.cat([torch.ones(total, shared, dtype=torch.bool), mask], dim=1)
    return PackedRow(input_ids=ids, position_ids=positions + shared, mask=mask, branches=tuple(branches))


def _one_text(piece: Piece, shared: int) -> PackedRow:
    """A context whose continuations are single tokens, but one at most: a plain text, and half the attention of a mask."""
    longest = max((tokens for _, tokens in piece.continuations), key=len)
    size = len(piece.context) - shared
    ids = torch.tensor([*piece.context[shared:], *longest[:-1]])
    branches = tuple(
        Branch(piece.unit, number, tuple(range(size - 1, size - 1 + len(tokens))), tokens)
        for number, tokens in piece.continuations
    )
    return PackedRow(input_ids=ids, position_ids=torch.arange(shared, shared + len(ids)), mask=None, branches=branches)


@torch.no_grad()
def packed_logits(model: Any, row: PackedRow, beginning: Beginning | None = None) -> torch.Tensor:
    """The float32 logits [N, V] that predict each branch's tokens, branch by branch."""
    device = model.device
    wanted = torch.tensor([place for branch in row.branches for place in branch.rows], device=device)
    kept, inverse = torch.unique(wanted, return_inverse=True)
    inputs = {"input_ids": row.input_ids[None].to(device)}
    if row.mask is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), "attention_mask": row.mask[None, None].to(device)}
    if beginning is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), **beginning.argument()}
    logits = _logits(model, kept, **inputs)
    return logits[inverse]


@torch.no_grad()
def plain_logits(model: Any, tokens: Sequence[int], num_last: int) -> torch.Tensor:
    """The float32 logits [num_last, V] of the last positions of one sequence alone: what a packed row stands for."""
    ids = torch.tensor([list(tokens)], device=model.device)
    return _logits(model, torch.arange(len(tokens) - num_last, len(tokens), device=model.device), input_ids=ids)


def _logits(model: Any, rows: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [N, V] of some positions; the head is not computed for others where the model can leave them out."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        found: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=rows).logits[0]
        return found.float()
    every: torch.Tensor = model(**inputs, use_cache=False).logits[0, rows]
    return every.float()
