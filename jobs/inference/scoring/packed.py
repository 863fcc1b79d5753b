"""Compute many questions in one forward pass: contexts once, continuations masked from each other."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ropewalk.jobs.inference.scoring.prefixes import Beginning
from ropewalk.jobs.inference.scoring.requests import Branch, Piece
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import each_token

# raised by a forward pass that does not support such a row or padding; each architecture has its own
DOES_NOT_FIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # NotImplementedError is a RuntimeError

# B tokens of the shared beginning, T tokens of the row after it, N predictions, R positions of a chunk, V vocabulary
# K targets of a position


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


class Predictions(NamedTuple):
    """Likelihoods of N tokens, each predicted at one position; whole logits are not kept."""

    log_probabilities: torch.Tensor  # [N], nats
    leads: torch.Tensor  # [N], logit of the token minus the largest of all others
    greedy: torch.Tensor  # [N], True if the token is the likeliest


@torch.no_grad()
def packed_predictions(model: Any, row: PackedRow, beginning: Beginning | None = None) -> list[Predictions]:
    """Return the predictions of each branch's tokens."""
    positions = [position for branch in row.branches for position in branch.rows]
    tokens = [token for branch in row.branches for token in branch.tokens]
    predictions = _predictions(model, positions, tokens, _inputs(model, row, beginning))
    parts = [torch.split(values, [len(branch.tokens) for branch in row.branches]) for values in predictions]
    return [Predictions(*values) for values in zip(*parts, strict=True)]


@torch.no_grad()
def plain_predictions(model: Any, tokens: Sequence[int], continuation: Sequence[int]) -> Predictions:
    """Return the predictions of a continuation at the last positions of one sequence alone: the reference for packed rows."""
    positions = range(len(tokens) - len(continuation), len(tokens))
    return _predictions(model, positions, continuation, {"input_ids": torch.tensor([list(tokens)], device=model.device)})


def _predictions(model: Any, positions: Sequence[int], tokens: Sequence[int], inputs: dict[str, Any]) -> Predictions:
    """Predict each token at its position; a position may predict several."""
    device, length = model.device, inputs["input_ids"].shape[1]
    targets_of: dict[int, list[int]] = {}
    slots = []
    for position, token in zip(positions, tokens, strict=True):
        targets_of.setdefault(position, []).append(token)
        slots.append(len(targets_of[position]) - 1)
    most = max(len(targets) for targets in targets_of.values())
    targets_1TK, labels_1T = torch.zeros(1, length, most, dtype=torch.int64), torch.full((1, length), IGNORE)
    for position, targets in targets_of.items():
        targets_1TK[0, position, : len(targets)] = torch.tensor(targets)
        labels_1T[0, position] = 0
    batch = {**inputs, "labels": labels_1T.to(device)}
    largest, second, likeliest, total, *logits = each_token(model, batch, _summarize, targets=targets_1TK.to(device))
    at, wanted_N = torch.tensor(positions, device=device), torch.tensor(tokens, device=device)
    target_N = torch.stack(logits)[torch.tensor(slots, device=device), 0, at]
    greedy_N = likeliest[0, at] == wanted_N
    return Predictions(target_N - total[0, at], target_N - torch.where(greedy_N, second[0, at], largest[0, at]), greedy_N)


def _summarize(logits_RV: torch.Tensor, tokens: Batch) -> list[torch.Tensor]:
    """Return the two largest logits, the likeliest token, the logarithm of the sum, and the logit of each target."""
    logits_RV = logits_RV.float()
    first_R, second_R = logits_RV.topk(2, dim=1).values.unbind(1)
    targets = logits_RV.gather(1, tokens["targets"]).unbind(1)
    return [first_R, second_R, logits_RV.argmax(1).float(), logits_RV.logsumexp(1), *targets]


@torch.no_grad()
def packed_logits(model: Any, row: PackedRow, beginning: Beginning | None = None) -> torch.Tensor:
    """Return the float32 logits [N, V] that predict each branch's tokens, branch by branch; of a few short rows."""
    positions = torch.tensor([position for branch in row.branches for position in branch.rows], device=model.device)
    unique_positions, inverse = torch.unique(positions, return_inverse=True)
    return _logits(model, unique_positions, **_inputs(model, row, beginning))[inverse]


def _inputs(model: Any, row: PackedRow, beginning: Beginning | None) -> dict[str, Any]:
    device = model.device
    inputs = {"input_ids": row.input_ids[None].to(device)}
    if row.mask is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), "attention_mask": row.mask[None, None].to(device)}
    if beginning is not None:
        inputs |= {"position_ids": row.position_ids[None].to(device), **beginning.argument()}
    return inputs


@torch.no_grad()
def plain_logits(model: Any, tokens: Sequence[int], num_last: int) -> torch.Tensor:
    """Return the float32 logits [num_last, V] of the last positions of one short sequence alone."""
    ids = torch.tensor([list(tokens)], device=model.device)
    return _logits(model, torch.arange(len(tokens) - num_last, len(tokens), device=model.device), input_ids=ids)


def _logits(model: Any, rows: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the logits [N, V] of the given positions; the head computes only those if the model supports it."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=rows).logits[0]
        return logits.float()
    logits_NV: torch.Tensor = model(**inputs, use_cache=False).logits[0, rows]
    return logits_NV.float()
