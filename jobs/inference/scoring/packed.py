"""Compute many questions in one forward pass: contexts once, continuations masked from each other."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.jobs.inference.scoring.prefixes import Beginning
from ropewalk.jobs.inference.scoring.requests import Branch, Piece

# raised by a forward pass that does not support such a row or padding; each architecture has its own
DOES_NOT_FIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # NotImplementedError is a RuntimeError

# B tokens of the shared beginning, T tokens of the row after it, N predictions, V vocabulary


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Questions concatenated in one row, with the mask that separates them."""

    input_ids: torch.Tensor  # [T]
    position_ids: torch.Tensor  # [T], from B
    mask: torch.Tensor | None  # [T, B + T], true where a token sees another; None: each sees all before it
    branches: tuple[Branch, ...]


def lay(pieces: Sequence[Piece], shared: int = 0) -> PackedRow:
    """Pack pieces into one row: each context, then its continuations, each of which attends to the context and itself.

    The first `shared` tokens of all contexts are left out: they are a `Beginning`, to which every token attends.
    """
    if len(pieces) == 1 and len(pieces[0].continuations) - sum(len(t) == 1 for _, t in pieces[0].continuations) <= 1:
        return _one_text(pieces[0], shared)
    total, longest = (of(piece.length - shared for piece in pieces) for of in (sum, max))
    ids, positions = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    mask, branches, at = torch.zeros(total, total, dtype=torch.bool), [], 0
    triangle = torch.ones(longest, longest, dtype=torch.bool).tril()
    for piece in pieces:
        size = len(piece.context) - shared
        ids[at : at + size] = torch.tensor(piece.context[shared:])
        positions[at : at + size] = torch.arange(size)
        mask[at : at + size, at : at + size] = triangle[:size, :size]
        begin, at = at, at + size
        for number, tokens in piece.continuations:
            branch_size = len(tokens) - 1
            ids[at : at + branch_size] = torch.tensor(tokens[:-1], dtype=torch.int64)
            positions[at : at + branch_size] = torch.arange(size, size + branch_size)
            mask[at : at + branch_size, begin : begin + size] = True
            mask[at : at + branch_size, at : at + branch_size] = triangle[:branch_size, :branch_size]
            rows = (begin + size - 1, *range(at, at + branch_size))
            branches.append(Branch(piece.unit, number, rows, tokens))
            at += branch_size
    mask = torch.cat([torch.ones(total, shared, dtype=torch.bool), mask], dim=1)
    return PackedRow(input_ids=ids, position_ids=positions + shared, mask=mask, branches=tuple(branches))


def _one_text(piece: Piece, shared: int) -> PackedRow:
    """Pack a context with at most one continuation longer than a token: a plain causal row that needs no mask."""
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
    """Return the float32 logits [N, V] that predict each branch's tokens, branch by branch."""
    device = model.device
    positions = torch.tensor([position for branch in row.branches for position in branch.rows], device=device)
    unique_positions, inverse = torch.unique(positions, return_inverse=True)
    inputs = {"input_ids": row.input_ids[None].to(device)}
    if row.mask is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), "attention_mask": row.mask[None, None].to(device)}
    if beginning is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), **beginning.argument()}
    logits = _logits(model, unique_positions, **inputs)
    return logits[inverse]


@torch.no_grad()
def plain_logits(model: Any, tokens: Sequence[int], num_last: int) -> torch.Tensor:
    """Return the float32 logits [num_last, V] of the last positions of one sequence alone: the reference for packed rows."""
    ids = torch.tensor([list(tokens)], device=model.device)
    return _logits(model, torch.arange(len(tokens) - num_last, len(tokens), device=model.device), input_ids=ids)


def _logits(model: Any, rows: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the logits [N, V] of the given positions; the head computes only those if the model supports it."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=rows).logits[0]
        return logits.float()
    logits_NV: torch.Tensor = model(**inputs, use_cache=False).logits[0, rows]
    return logits_NV.float()
