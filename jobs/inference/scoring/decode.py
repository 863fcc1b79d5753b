"""Decode token by token: a prompt alone, or several side by side with every choice that rounding could change flagged."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from ropewalk.jobs.inference.scoring.threads import one_thread

# B prompts side by side, V vocabulary

Ended = Literal["end of text", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of generated text."""

    max_new_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # nucleus: the likeliest tokens with this total probability
    top_k: int = 0  # number of likeliest tokens to choose from; 0: all
    stop: tuple[str, ...] = ()  # stop texts; the answer ends before the first of them


class Prompt(NamedTuple):
    """Token ids to continue, and the seed of the draw."""

    tokens: Sequence[int]
    seed: tuple[int, int]


@dataclass(kw_only=True)
class Text:
    """The text generated so far after a prompt."""

    prompt: Prompt
    random: np.random.Generator
    tokens: list[int]
    ended: Ended | None = None
    doubtful: bool = False  # a choice was within rounding of a tie: decode the prompt alone

    @classmethod
    def begin(cls, prompt: Prompt) -> "Text":
        return cls(prompt=prompt, random=np.random.default_rng(prompt.seed), tokens=[])


class Decoder:
    """Decodes with one model.

    `ends` are the tokens that end a text; `is_stopped` returns True if tokens contain one of the stop texts.
    """

    def __init__(self, model: Any, ends: set[int], is_stopped: Callable[[Sequence[int], tuple[str, ...]], bool]) -> None:
        self.model, self.ends, self.is_stopped = model, ends, is_stopped
        self._cache_word = cache_word(model)
        self._places = "position_ids" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def alone(self, prompt: Prompt, sampling: Sampling) -> Text:
        """Decode one prompt by itself on one thread: the reference for every other way of decoding."""
        text, cache = Text.begin(prompt), DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt.tokens)], device=self.model.device)
        with one_thread():
            while text.ended is None:
                logits = self.model(input_ids=ids, use_cache=True, **{self._cache_word: cache}).logits[0, -1].float()
                self._append(text, choose(logits, sampling, text.random)[0], sampling)
                ids = torch.tensor([text.tokens[-1:]], device=self.model.device)
        return text

    @torch.no_grad()
    def together(self, prompts: Sequence[Prompt], sampling: Sampling, noise: float) -> list[Text]:
        """Decode prompts side by side.

        A text with a choice that `noise` (nats) could change is `doubtful` and left unfinished.
        """
        texts = [Text.begin(prompt) for prompt in prompts]
        rows, cache = list(range(len(texts))), DynamicCache(config=self.model.config)
        mask_BT = _left_pad([[1] * len(prompt.tokens) for prompt in prompts]).to(self.model.device)
        ids_BT = _left_pad([list(prompt.tokens) for prompt in prompts]).to(self.model.device)
        while rows:
            logits_BV = self._step(ids_BT, mask_BT, cache)
            for row, logits_V in zip(rows, logits_BV, strict=True):
                token, lead = choose(logits_V, sampling, texts[row].random)
                texts[row].doubtful = lead <= 2 * noise / (sampling.temperature or 1.0)
                self._append(texts[row], token, sampling)
            unfinished = [
                index_in_batch for index_in_batch, row in enumerate(rows) if texts[row].ended is None and not texts[row].doubtful
            ]
            if len(unfinished) < len(rows):
                selected = torch.tensor(unfinished, device=self.model.device, dtype=torch.int64)
                rows, mask_BT = [rows[index_in_batch] for index_in_batch in unfinished], mask_BT[selected]
                if rows:
                    cache.batch_select_indices(selected)
            ids_BT = torch.tensor([texts[row].tokens[-1:] for row in rows], device=self.model.device)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        return texts

    @torch.no_grad()
    def first_logits(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Return the logits [B, V] of the second token after each prompt, side by side; the first one is the prompt's own."""
        mask_BT = _left_pad([[1] * len(prompt.tokens) for prompt in prompts]).to(self.model.device)
        ids_BT = _left_pad([list(prompt.tokens) for prompt in prompts]).to(self.model.device)
        cache = DynamicCache(config=self.model.config)
        self._step(ids_BT, mask_BT, cache)
        ids_BT = torch.tensor([[prompt.tokens[0]] for prompt in prompts], device=self.model.device)
        return self._step(ids_BT, torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1), cache)

    def _step(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, cache: Any) -> torch.Tensor:
        positions = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        more = {"position_ids": positions} if self._places else {}
        logits_BTV: torch.Tensor = self.model(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=True, **{self._cache_word: cache}, **more
        ).logits
        return logits_BTV[:, -1].float()

    def _append(self, text: Text, token: int, sampling: Sampling) -> None:
        text.tokens.append(token)
        if token in self.ends:
            text.ended = "end of text"
        elif sampling.stop and self.is_stopped(text.tokens, sampling.stop):
            text.ended = "stop"
        elif len(text.tokens) >= sampling.max_new_tokens:
            text.ended = "length"


def cache_word(model: Any) -> str:
    """Return the name of the cache argument of a model's forward; state-space models call it `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def choose(logits_V: torch.Tensor, sampling: Sampling, random: np.random.Generator, *, min_p: float = 0.0) -> tuple[int, float]:
    """Return the next token and its lead over the second (nats).

    `min_p` excludes tokens less likely than this fraction of the likeliest one.
    """
    scaled = logits_V
    if sampling.temperature != 0:
        scaled = _mask_excluded(logits_V / sampling.temperature, sampling, min_p)
        # Gumbel-max trick (Gumbel 1954): a draw from the softmax without a cumulative sum of rounded probabilities
        scaled = scaled + torch.from_numpy(random.gumbel(size=len(scaled))).to(scaled)
    best = scaled.topk(2).values
    return int(scaled.argmax()), float(best[0] - best[1])


def _mask_excluded(scaled_V: torch.Tensor, sampling: Sampling, min_p: float) -> torch.Tensor:
    """Mask the logits that top-k, top-p and min-p exclude, applied in this order as in transformers."""
    if sampling.top_k:
        least = scaled_V.topk(min(sampling.top_k, len(scaled_V))).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scaled_V.sort(descending=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        within_top_p = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        scaled_V = torch.full_like(scaled_V, -torch.inf).scatter(0, order, within_top_p)
    if min_p:
        scaled_V = scaled_V.masked_fill(scaled_V < scaled_V.max() + float(np.log(min_p)), -torch.inf)
    return scaled_V


def _left_pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
