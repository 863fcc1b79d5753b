"""Beginnings that many contexts have in common, such as the same examples before each item: computed once for all of them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from ropewalk.jobs.inference.scoring.decode import cache_word
from ropewalk.jobs.inference.scoring.requests import Piece

LEAST_TOKENS = 48  # a shorter beginning is computed with its contexts: it would cost a forward pass of its own
_KEPT_SHARE = 0.5  # of a group's beginning that another context has to have in common with it to join


class Alike(NamedTuple):
    """Pieces whose contexts begin with the same tokens."""

    beginning: tuple[int, ...]  # fewer than each of the contexts has; empty: nothing is shared
    pieces: tuple[Piece, ...]  # in the order in which they were given


def alike(found: Sequence[Piece]) -> Iterator[Alike]:
    """The pieces by their beginnings, those that share none last."""
    alone: list[int] = []
    for size, members in _groups(found):
        if len(members) > 1:
            yield Alike(found[members[0]].context[:size], tuple(found[place] for place in sorted(members)))
        else:
            alone += members
    if alone:
        yield Alike((), tuple(found[place] for place in sorted(alone)))


def _groups(found: Sequence[Piece]) -> list[tuple[int, list[int]]]:
    """(Tokens in common, numbers of pieces): neighbours in the order of their tokens that have enough in common."""
    groups: list[tuple[int, list[int]]] = []
    for place in sorted(range(len(found)), key=lambda place: found[place].context):
        context = found[place].context
        if groups:
            size, members = groups[-1]
            common = min(size, _common(found[members[0]].context, context), len(context) - 1)
            if common >= LEAST_TOKENS and (len(members) == 1 or common >= _KEPT_SHARE * size):
                members.append(place)
                groups[-1] = (common, members)
                continue
        groups.append((len(context) - 1, [place]))
    return groups


def _common(one: Iterable[int], other: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Beginning:
    """The keys and values of a beginning, which packed rows attend to."""

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        self.size, self._word = len(tokens), cache_word(model)
        self._cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(
                input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=True, logits_to_keep=1, **self.argument()
            )

    def argument(self) -> dict[str, Any]:
        """What a forward pass is given: it appends its own tokens, which the next one must not see."""
        if (more := int(self._cache.get_seq_length()) - self.size) > 0:
            self._cache.crop(-more)
        return {self._word: self._cache}
