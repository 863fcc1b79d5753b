"""One answer of the reference engine, token by token, and how it goes on with one that another process has begun.

An answer that is continued must be the one that would have been given. Prompt and drawn tokens are read in one forward pass,
which is quick, but differs by rounding from what a pass a token gives. So while a choice is clear it is made; at the first one
that rounding could turn, the drawn tokens are read one by one, as they were when they were drawn, and all that follows is exact.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from jobs.engines.sampler import Drawn, Ended, Sampling, Top
from jobs.engines.transformers.constraint import Constraint
from jobs.inference.decode import Sampling as Drawing
from jobs.inference.decode import choose
from jobs.inference.ties import token_noise


class Answer:
    """An answer while it is drawn. A token depends on the prompt, the seed, and its place in the answer."""

    def __init__(
        self, model: Any, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int], constraint: Constraint | None
    ) -> None:
        self._model, self._sampling, self._ends, self._constraint = model, sampling, ends, constraint
        self._prompt_size = len(prompt) - sampling.continued
        self._tokens = list(prompt)
        self._drawing = Drawing(temperature=sampling.temperature, top_p=sampling.top_p, top_k=max(sampling.top_k, 0))
        words = inspect.signature(model.forward).parameters
        self._cache_word = "cache" if "cache" in words else "past_key_values"  # it was renamed in transformers 5
        self._cache: Any = None
        self._exact = sampling.continued == 0
        if constraint is not None:
            for token in self._tokens[self._prompt_size :]:
                constraint.take(token)

    @torch.no_grad()
    def step(self) -> Drawn:
        """Draw the next token. Raises ApiError where nothing that the JSON schema allows is left."""
        if self._cache is None and not self._exact and self._cuts:
            self._read_one_by_one()  # which tokens are cut is not a matter of one lead
        elif self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            self._logits = self._pass(self._tokens)
        else:
            self._logits = self._pass(self._tokens[-1:])
        token, lead, logits = self._choice()
        if not self._exact and lead <= 2 * token_noise(self._model.dtype) / (self._sampling.temperature or 1.0):
            self._read_one_by_one()
            token, lead, logits = self._choice()
        self._tokens.append(token)
        if self._constraint is not None and token not in self._ends:
            self._constraint.take(token)
        return self._drawn(token, logits)

    @property
    def _cuts(self) -> bool:
        asked = self._sampling
        return asked.temperature != 0 and (asked.top_k > 0 or asked.top_p < 1 or asked.min_p > 0)

    def _read_one_by_one(self) -> None:
        """Compute the state as it was when the tokens were drawn: the prompt in one pass, then a pass a token."""
        self._cache = DynamicCache(config=self._model.config)
        self._logits = self._pass(self._tokens[: self._prompt_size])
        for token in self._tokens[self._prompt_size :]:
            self._logits = self._pass([token])
        self._exact = True

    def _pass(self, tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self._model.device)
        found: torch.Tensor = self._model(input_ids=ids, use_cache=True, **{self._cache_word: self._cache}).logits[0, -1].float()
        return found

    def _choice(self) -> tuple[int, float, torch.Tensor]:
        """The next token, its lead over the second, and the logits of the model itself."""
        logits = scaled = self._logits
        if self._sampling.bias:
            scaled = scaled.clone()
            scaled[list(self._sampling.bias)] += torch.tensor(list(self._sampling.bias.values()), device=scaled.device)
        if self._constraint is not None:
            scaled = self._constraint.masked(scaled)
        if not self._sampling.end:
            scaled = scaled.clone()
            scaled[list(self._ends)] = -torch.inf
        if self._sampling.temperature and self._sampling.min_p:
            likely = (scaled / self._sampling.temperature).log_softmax(0)
            scaled = scaled.masked_fill(likely < likely.max() + float(np.log(self._sampling.min_p)), -torch.inf)
        place = len(self._tokens) - self._prompt_size
        random = np.random.default_rng([self._sampling.seed % 2**64, place])
        return (*choose(scaled, self._drawing, random), logits)

    def _drawn(self, token: int, logits: torch.Tensor) -> Drawn:
        ended: Ended | None = None
        if token in self._ends or (self._constraint is not None and self._constraint.done):
            ended = "stop"
        elif len(self._tokens) - self._prompt_size >= self._sampling.max_tokens:
            ended = "length"
        if self._sampling.logprobs is None:
            return Drawn(token, ended=ended)
        logprobs = logits.log_softmax(0)
        return Drawn(token, float(logprobs[token]), likeliest(logprobs, self._sampling.logprobs), ended)


def likeliest(logprobs_V: torch.Tensor, top: int) -> tuple[Top, ...]:
    """The tokens with the highest log-probabilities."""
    best = logprobs_V.topk(min(top, len(logprobs_V)))
    return tuple(Top(int(token), float(value)) for value, token in zip(best.values, best.indices, strict=True))
