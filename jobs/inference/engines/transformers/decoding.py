"""One answer of the reference engine, token by token, and how it goes on with one that another process has begun.

An answer that is continued must be the one that would have been given. Prompt and drawn tokens are read in one forward pass,
which is quick, but differs by rounding from what a pass a token gives. So while a choice is clear it is made; at the first one
that rounding could turn, the drawn tokens are read one by one, as they were when they were drawn, and all that follows is exact.
The same holds for tokens that a draft has guessed, which are read in one pass too.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ropewalk.jobs.inference.engines.sampler import Drawn, Ended, Sampling, Top
from ropewalk.jobs.inference.engines.transformers.constraint import Constraint
from ropewalk.jobs.inference.engines.transformers.guesses import Draft, Guesser, State
from ropewalk.jobs.inference.scoring.decode import Sampling as Drawing
from ropewalk.jobs.inference.scoring.decode import choose
from ropewalk.jobs.inference.scoring.ties import token_noise


class Answer:
    """An answer while it is drawn. A token depends on the prompt, the seed, and its place in the answer."""

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        sampling: Sampling,
        ends: frozenset[int],
        *,
        constraint: Constraint | None = None,
        draft: Draft | None = None,
    ) -> None:
        self._model, self._sampling, self._ends, self._constraint = model, sampling, ends, constraint
        self._prompt_size = len(prompt) - sampling.continued
        self._tokens = list(prompt)
        self._drawing = Drawing(temperature=sampling.temperature, top_p=sampling.top_p, top_k=max(sampling.top_k, 0))
        self._state: State | None = None  # all tokens are read but the last one
        self._exact = sampling.continued == 0  # the state is that of a pass a token
        # with cuts a token is not a matter of one lead; log-probabilities are told to the last digit
        guesses = draft is not None and not self._cuts and constraint is None and sampling.logprobs is None
        self._guesser = Guesser(draft) if draft is not None and guesses else None
        if constraint is not None:
            for token in self._tokens[self._prompt_size :]:
                constraint.take(token)

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Draw the next token, or several where guesses were right. Raises ApiError where the JSON schema allows none."""
        began, prompt = time.perf_counter(), self._state is None
        guesses, rows = self._read()
        found: list[Drawn] = []
        for row, logits_V in enumerate(rows):
            found.append(self._draw(logits_V.float()))
            if found[-1].ended is not None or self._exact or row == len(guesses) or found[-1].token != guesses[row]:
                break
        assert self._state is not None
        self._state.forget(len(self._tokens) - 1)
        if self._guesser is not None and not prompt:
            self._guesser.took(len(found), time.perf_counter() - began)
        return found

    def _read(self) -> tuple[list[int], torch.Tensor]:
        """Read what is new, with guesses of what follows; those, and the logits behind the last token and each guess."""
        if self._state is None and not self._exact and self._cuts:
            return [], self._read_one_by_one()[None]
        if self._state is None:
            self._state = State(self._model)
            return [], self._state.read(self._tokens)[-1:]
        guesses = self._guesses()
        self._exact = self._exact and not guesses
        return guesses, self._state.read([self._tokens[-1], *guesses])

    def _guesses(self) -> list[int]:
        if self._guesser is None:
            return []
        left = self._sampling.max_tokens - (len(self._tokens) - self._prompt_size)
        return self._guesser.ahead(self._tokens, left - 1, lambda logits, place: self._choice(logits, place)[0], self._ends)

    @property
    def _cuts(self) -> bool:
        asked = self._sampling
        return asked.temperature != 0 and (asked.top_k > 0 or asked.top_p < 1 or asked.min_p > 0)

    def _read_one_by_one(self) -> torch.Tensor:
        """Compute the state as it was when the tokens were drawn: the prompt in one pass, then a pass a token; its logits."""
        self._state = State(self._model)
        logits_V = self._state.read(self._tokens[: self._prompt_size])[-1]
        for token in self._tokens[self._prompt_size :]:
            logits_V = self._state.read([token])[-1]
        self._exact = True
        return logits_V.float()

    def _choice(self, logits_V: torch.Tensor, place: int) -> tuple[int, float]:
        """The token at a place of the text, and its lead over the second."""
        scaled = logits_V
        if self._sampling.bias:
            scaled = scaled.clone()
            scaled[list(self._sampling.bias)] += torch.tensor(list(self._sampling.bias.values()), device=scaled.device)
        if self._constraint is not None:
            scaled = self._constraint.masked(scaled)
        if not self._sampling.end:
            scaled = scaled.clone()
            scaled[list(self._ends)] = -torch.inf
        random = np.random.default_rng([self._sampling.seed % 2**64, place - self._prompt_size])
        return choose(scaled, self._drawing, random, min_p=self._sampling.min_p)

    def _draw(self, logits_V: torch.Tensor) -> Drawn:
        """Append the token that follows; where rounding could turn which one that is, read all anew before."""
        token, lead = self._choice(logits_V, len(self._tokens))
        if not self._exact and lead <= 2 * token_noise(self._model.dtype) / (self._sampling.temperature or 1.0):
            logits_V = self._read_one_by_one()
            token, _ = self._choice(logits_V, len(self._tokens))
            self._guesser = None  # each doubt costs as many passes as there are tokens
        self._tokens.append(token)
        if self._constraint is not None and token not in self._ends:
            self._constraint.take(token)
        return self._drawn(token, logits_V)

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
