"""Tokens that a smaller model guesses ahead: the model reads several at once, and keeps those that it would have drawn itself.

Speculative decoding (2211.17192) whose answer is the model's own, token by token: a guess is drawn by the random numbers of its
place in the answer, as the model's own token there is, so that the two agree wherever they find the same likely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.transformers.pace import Pace
from ropewalk.jobs.inference.scoring.decode import cache_word
from ropewalk.jobs.inference.scoring.open_model import OpenModel

# N new tokens, V vocabulary

SURE = 0.4  # a draft that finds no token so likely guesses no further: most of what follows would be wrong, at a pass each
DrawAt = Callable[[torch.Tensor, int], int]  # (logits [V], place in the text) → a token


@dataclass(frozen=True)
class Draft:
    """A model that guesses for another one, as long as that pays."""

    opened: OpenModel
    most: int  # tokens that it guesses at once
    pace: Pace = field(default_factory=Pace)

    def check(self, opened: OpenModel) -> None:
        """Raise ConfigError unless it can guess for a model: the same tokens, and both can take back what they have read."""
        own = self.opened
        if own.tokenizer.get_vocab() != opened.tokenizer.get_vocab() or _size(own) != _size(opened):
            raise ConfigError(f"draft: {own.name} has other tokens than {opened.name}; distil a draft out of the model itself")
        for each in (opened, own):
            if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=each.model.config).layers):
                raise ConfigError(f"draft: {each.name} cannot take back what it has read (a window, a state); leave draft unset")


class State:
    """A model and what it has read of one text."""

    def __init__(self, model: Any) -> None:
        self._model, self._word = model, cache_word(model)
        self._cache = DynamicCache(config=model.config)

    @property
    def size(self) -> int:
        """How many tokens it has read."""
        return int(self._cache.get_seq_length())

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read tokens behind those before, in one pass; the logits [N, V] behind each of them."""
        ids = torch.tensor([list(tokens)], device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=True, **{self._word: self._cache}).logits
        return logits[0]

    def forget(self, size: int) -> None:
        """Take back all but the first `size` tokens."""
        if self.size > size:
            self._cache.crop(size - self.size)  # a negative number: so many from the end


class Guesser:
    """Guesses for one answer."""

    def __init__(self, draft: Draft) -> None:
        self._draft, self._state = draft, State(draft.opened.model)
        self._asked = False  # for the pass that follows

    def ahead(self, tokens: Sequence[int], most: int, draw: DrawAt, ends: frozenset[int]) -> list[int]:
        """What may follow the tokens: none where the draft is not sure or does not pay, at most `most`."""
        guesses: list[int] = []
        self._asked = self._draft.pace.guesses
        if not self._asked:
            return guesses
        self._state.forget(len(tokens) - 1)  # of what it guessed before, the last token of the text is the first to differ
        fresh = tokens[self._state.size :]
        most = min(most, self._draft.most, self._draft.opened.max_length - len(tokens))
        while len(guesses) < most:
            logits_V = self._state.read(fresh)[-1].float()
            if float(logits_V.softmax(0).max()) < SURE:
                break
            guesses.append(draw(logits_V, len(tokens) + len(guesses)))
            if guesses[-1] in ends:
                break
            fresh = guesses[-1:]
        return guesses

    def took(self, tokens: int, seconds: float) -> None:
        """Count a pass, with whatever was guessed for it, that drew so many tokens."""
        self._draft.pace.took(guessed=self._asked, tokens=tokens, seconds=seconds)


def _size(opened: OpenModel) -> int:
    return int(opened.model.get_input_embeddings().num_embeddings)
