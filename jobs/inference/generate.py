"""Text that a model writes after a prompt: greedy, or drawn from a seed; the same whatever is written beside it."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from cluster.errors import DataError
from jobs.inference.open_model import OpenModel
from jobs.inference.threads import one_thread

# V vocabulary


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is drawn."""

    max_new_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # only the likeliest tokens that have this share together
    top_k: int = 0  # only so many of the likeliest; 0: all
    stop: tuple[str, ...] = ()  # texts before which the answer ends


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model has written after a prompt."""

    tokens: tuple[int, ...]  # with the end of text, where it wrote that
    text: str  # up to the first stop
    ended: Literal["end of text", "stop", "length"]


def generate(
    opened: OpenModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[Generated]:
    """What the model writes after each prompt (token ids), in order.

    A text depends on the prompt, the seed and the prompt's number (unset: its place) alone, not on the other prompts. A prompt
    that leaves no room loses its beginning. Raises DataError for an empty prompt, or where `max_new_tokens` leaves no room at
    all.
    """
    for place, prompt in enumerate(prompts):
        number = place if numbers is None else numbers[place]
        yield _write(opened, fitting(prompt, sampling.max_new_tokens, opened.max_length), sampling, (seed, number))


def fitting(prompt: Sequence[int], new_tokens: int, max_length: int) -> list[int]:
    """The end of a prompt that leaves room for the answer. Raises DataError."""
    room = max_length - new_tokens
    if room < 1:
        raise DataError(f"{new_tokens} new tokens leave no room for a prompt: the model sees {max_length}; ask for fewer")
    if not prompt:
        raise DataError("a prompt is empty; put the model's prefix token there")
    return list(prompt)[-room:]


@torch.no_grad()
def _write(opened: OpenModel, prompt: list[int], sampling: Sampling, seed: tuple[int, int]) -> Generated:
    random = np.random.default_rng(seed)
    cache, tokens = DynamicCache(config=opened.model.config), list[int]()
    ids = torch.tensor([prompt], device=opened.device)
    ends, word = end_tokens(opened), _cache_word(opened.model)
    with one_thread():
        while len(tokens) < sampling.max_new_tokens:
            logits = opened.model(input_ids=ids, use_cache=True, **{word: cache}).logits[0, -1].float()
            tokens.append(_choose(logits, sampling, random))
            if tokens[-1] in ends:
                return Generated(tokens=tuple(tokens), text=_decode(opened, tokens[:-1]), ended="end of text")
            text = _decode(opened, tokens) if sampling.stop else ""
            if any(stop in text for stop in sampling.stop):
                return Generated(tokens=tuple(tokens), text=cut(text, sampling.stop), ended="stop")
            ids = torch.tensor([tokens[-1:]], device=opened.device)
    return Generated(tokens=tuple(tokens), text=_decode(opened, tokens), ended="length")


def _cache_word(model: Any) -> str:
    """The argument by which a model takes its cache: it was renamed in transformers 5."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _choose(logits_V: torch.Tensor, sampling: Sampling, random: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled = logits_V / sampling.temperature
    if sampling.top_k:
        least = scaled.topk(min(sampling.top_k, len(scaled))).values[-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scaled.sort(descending=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        scaled = scaled.masked_fill(
            torch.zeros_like(scaled, dtype=torch.bool).scatter(0, order, before >= sampling.top_p), -torch.inf
        )
    # the likeliest after Gumbel noise is a draw from the softmax (Gumbel 1954), and needs no sum of rounded shares
    noise = torch.from_numpy(random.gumbel(size=len(scaled))).to(scaled)
    return int((scaled + noise).argmax())


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text


def end_tokens(opened: OpenModel) -> set[int]:
    """The tokens with which the model ends a text: of its tokenizer, and of its generation configuration."""
    told: Any = getattr(getattr(opened.model, "generation_config", None), "eos_token_id", None)
    found = {opened.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
    return {int(token) for token in found if token is not None}


def _decode(opened: OpenModel, tokens: Sequence[int]) -> str:
    return str(opened.tokenizer.decode(list(tokens), skip_special_tokens=True))
