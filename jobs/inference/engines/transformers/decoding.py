"""One answer of the reference engine, token by token, and the exact continuation of an answer that another process began.

A continued answer must equal the one that the first process would have given. Reading prompt and sampled tokens in one forward
pass is fast, but rounds differently from one pass per token. A clear choice is made on the fast result; at the first choice
that rounding could change, the sampled tokens are read again one by one, and everything after that is exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from ropewalk.jobs.inference.engines.sampler import Drawn, Ended, Sampling, Top
from ropewalk.jobs.inference.engines.transformers.constraint import Constraint
from ropewalk.jobs.inference.scoring.decode import Sampling as Drawing
from ropewalk.jobs.inference.scoring.decode import cache_word, choose
from ropewalk.jobs.inference.scoring.ties import token_noise

# V vocabulary


class Answer:
    """An answer in progress. A token depends on the prompt, the seed, and its position in the answer."""

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        sampling: Sampling,
        ends: frozenset[int],
        *,
        constraint: Constraint | None = None,
    ) -> None:
        self._model, self._sampling, self._ends, self._constraint = model, sampling, ends, constraint
        self._prompt_size = len(prompt) - sampling.continued
        self._tokens = list(prompt)
        self._drawing = Drawing(temperature=sampling.temperature, top_p=sampling.top_p, top_k=max(sampling.top_k, 0))
        self._cache: DynamicCache | None = None  # of all tokens but the last one
        self._exact = sampling.continued == 0  # the cache is that of a pass a token
        if constraint is not None:
            for token in self._tokens[self._prompt_size :]:
                constraint.take(token)

    @torch.no_grad()
    def step(self) -> Drawn:
        """Sample the next token. Raises ApiError if the JSON schema allows none."""
        if self._cache is not None:
            logits_V = self._read(self._tokens[-1:])
        elif not self._exact and self._cuts:  # with cuts, the lead of a token does not bound the effect of rounding
            logits_V = self._read_one_by_one()
        else:
            logits_V = self._read(self._tokens)
        token, lead = self._choice(logits_V, len(self._tokens))
        if not self._exact and lead <= 2 * token_noise(self._model.dtype) / (self._sampling.temperature or 1.0):
            logits_V = self._read_one_by_one()
            token, _ = self._choice(logits_V, len(self._tokens))
        self._tokens.append(token)
        if self._constraint is not None and token not in self._ends:
            self._constraint.take(token)
        return self._drawn(token, logits_V)

    @property
    def _cuts(self) -> bool:
        sampling = self._sampling
        return sampling.temperature != 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)

    def _read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read tokens in one pass after those in the cache, and return the logits after the last of them."""
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([list(tokens)], device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=True, **{cache_word(self._model): self._cache}).logits
        return logits[0, -1].float()

    def _read_one_by_one(self) -> torch.Tensor:
        """Fill the cache with one pass for the prompt and one per sampled token, as in the original answer; return the logits."""
        self._cache, self._exact = None, True
        logits_V = self._read(self._tokens[: self._prompt_size])
        for token in self._tokens[self._prompt_size :]:
            logits_V = self._read([token])
        return logits_V

    def _choice(self, logits_V: torch.Tensor, position: int) -> tuple[int, float]:
        """Return the token at a position of the text, and its lead over the second (nats)."""
        scaled = logits_V
        if self._sampling.bias:
            scaled = scaled.clone()
            scaled[list(self._sampling.bias)] += torch.tensor(list(self._sampling.bias.values()), device=scaled.device)
        if self._constraint is not None:
            scaled = self._constraint.mask(scaled)
        if not self._sampling.end:
            scaled = scaled.clone()
            scaled[list(self._ends)] = -torch.inf
        random = np.random.default_rng([self._sampling.seed % 2**64, position - self._prompt_size])
        return choose(scaled, self._drawing, random, min_p=self._sampling.min_p)

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
    """Return the tokens with the highest log-probabilities."""
    best = logprobs_V.topk(min(top, len(logprobs_V)))
    return tuple(Top(int(token), float(value)) for value, token in zip(best.values, best.indices, strict=True))
