"""Common beginnings of many contexts, such as the same few-shot examples: computed once for all of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from ropewalk.jobs.inference.scoring.decode import cache_word
from ropewalk.jobs.inference.scoring.requests import Piece

LEAST_TOKENS = 48  # a shorter beginning is computed with its contexts: a forward pass of its own would cost more
_JOIN_SHARE = 0.5  # share of a group's beginning that a context must have in common to join


class SharedBeginning(NamedTuple):
    """Pieces whose contexts share a beginning."""

    beginning: tuple[int, ...]  # shorter than each context; empty: nothing is shared
    pieces: tuple[Piece, ...]  # in input order


def group_by_beginning(pieces: Sequence[Piece]) -> Iterator[SharedBeginning]:
    """Group pieces by common beginnings; pieces without one come last."""
    alone: list[int] = []
    for size, members in _groups(pieces):
        if len(members) > 1:
            yield SharedBeginning(pieces[members[0]].context[:size], tuple(pieces[index] for index in sorted(members)))
        else:
            alone += members
    if alone:
        yield SharedBeginning((), tuple(pieces[index] for index in sorted(alone)))


def _groups(pieces: Sequence[Piece]) -> list[tuple[int, list[int]]]:
    """Return (number of common tokens, indices of pieces) for neighbours in token order with enough tokens in common."""
    groups: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(pieces)), key=lambda index: pieces[index].context):
        context = pieces[index].context
        if groups:
            size, members = groups[-1]
            common = min(size, _common(pieces[members[0]].context, context), len(context) - 1)
            if common >= LEAST_TOKENS and (len(members) == 1 or common >= _JOIN_SHARE * size):
                members.append(index)
                groups[-1] = (common, members)
                continue
        groups.append((len(context) - 1, [index]))
    return groups


def _common(mine: Iterable[int], theirs: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))


class Beginning:
    """Keys and values of a beginning, to which packed rows attend."""

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        self.size, self._word = len(tokens), cache_word(model)
        self._cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(
                input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=True, logits_to_keep=1, **self.argument()
            )

    def argument(self) -> dict[str, Any]:
        """Return the cache argument of a forward pass, without the tokens that the previous pass appended."""
        if (more := int(self._cache.get_seq_length()) - self.size) > 0:
            self._cache.crop(-more)
        return {self._word: self._cache}
