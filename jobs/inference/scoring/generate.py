"""Text that a model writes after a prompt: greedy, or drawn from a seed; the same whatever is written beside it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.inference.scoring.decode import Decoder, Ended, Prompt, Sampling, Text
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.packed import DOES_NOT_FIT
from ropewalk.jobs.inference.scoring.stops import Stops, special_tokens
from ropewalk.jobs.inference.scoring.ties import token_noise

__all__ = ["Generated", "Sampling", "Writer", "generate"]

log = logging.getLogger(__name__)

CPU_PROMPTS, GPU_PROMPTS = 8, 64  # side by side


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model has written after a prompt."""

    tokens: tuple[int, ...]  # with the end of text, where it wrote that
    text: str  # up to the first stop
    ended: Ended


class Writer:
    """Writes with one model, several texts side by side where the model allows that.

    What is computed beside a prompt moves its figures by some rounding. So a text with a choice that is nearer to a tie than
    rounding can move it is written again by itself: every text is that of the prompt alone.
    """

    def __init__(self, opened: OpenModel, batch_size: int | None = None) -> None:
        """`batch_size` is the most prompts side by side."""
        self.opened = opened
        self.batch_size = batch_size or (CPU_PROMPTS if opened.device.type == "cpu" else GPU_PROMPTS)
        self._decoder = Decoder(opened.model, end_tokens(opened), self._is_stopped)
        self._noise = token_noise(opened.model.dtype)
        self._side_by_side: bool | None = None
        self._stops: dict[tuple[str, ...], Stops] = {}

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Generated]]:
        """What follows each prompt; yields (number of the prompt, text), the shortest prompts first. Raises DataError."""
        fit = [Prompt(fitting(prompt.tokens, sampling.max_new_tokens, self.opened.max_length), prompt.seed) for prompt in prompts]
        order = sorted(range(len(fit)), key=lambda number: (len(fit[number].tokens), number))
        size = self.batch_size if len(fit) > 1 and self._may_share(sampling) else 1
        for begin in range(0, len(order), size):
            numbers = order[begin : begin + size]
            texts = self._decoder.together([fit[n] for n in numbers], sampling, self._noise) if len(numbers) > 1 else []
            for place, number in enumerate(numbers):
                done = texts[place] if texts and not texts[place].doubtful else self._decoder.alone(fit[number], sampling)
                yield number, self._generated(done, sampling)

    def _may_share(self, sampling: Sampling) -> bool:
        """Whether prompts may be decoded side by side: which tokens top-k and top-p leave out is no matter of one lead."""
        if sampling.temperature != 0 and (sampling.top_k or sampling.top_p < 1):
            return False
        if self._side_by_side is None:
            self._side_by_side = pads_prompts(self._decoder, self._noise)
        return self._side_by_side

    def _generated(self, text: Text, sampling: Sampling) -> Generated:
        assert text.ended is not None
        shown = text.tokens[:-1] if text.ended == "end of text" else text.tokens
        return Generated(tokens=tuple(text.tokens), text=self._cut(shown, sampling.stop), ended=text.ended)

    def _cut(self, tokens: Sequence[int], texts: tuple[str, ...]) -> str:
        stops = self._stops_of(texts)
        return stops.cut(stops.searched(tokens, self._text))

    def _is_stopped(self, tokens: Sequence[int], texts: tuple[str, ...]) -> bool:
        stops = self._stops_of(texts)
        return stops.found_in(stops.searched(tokens, self._text))

    def _stops_of(self, texts: tuple[str, ...]) -> Stops:
        if texts not in self._stops:
            self._stops[texts] = Stops(texts, special_tokens(self.opened.tokenizer))
        return self._stops[texts]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.opened.tokenizer.decode(list(tokens), skip_special_tokens=True))


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
    asked = [Prompt(prompt, (seed, numbers[k] if numbers is not None else k)) for k, prompt in enumerate(prompts)]
    found = dict(Writer(opened).write(asked, sampling))
    yield from (found[number] for number in range(len(asked)))


def fitting(prompt: Sequence[int], new_tokens: int, max_length: int) -> list[int]:
    """The end of a prompt that leaves room for the answer. Raises DataError."""
    room = max_length - new_tokens
    if room < 1:
        raise DataError(f"{new_tokens} new tokens leave no room for a prompt: the model sees {max_length}; ask for fewer")
    if not prompt:
        raise DataError("a prompt is empty; put the model's prefix token there")
    return list(prompt)[-room:]


def end_tokens(opened: OpenModel) -> set[int]:
    """The tokens with which the model ends a text: of its tokenizer, and of its generation configuration."""
    told: Any = getattr(getattr(opened.model, "generation_config", None), "eos_token_id", None)
    found = {opened.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
    return {int(token) for token in found if token is not None}


def pads_prompts(decoder: Decoder, noise: float) -> bool:
    """Whether a padded prompt's next tokens are those of the prompt alone: a recurrence, for one, remembers its padding."""
    size = min(int(decoder.model.config.vocab_size), 1000)
    prompts = [Prompt([(7 * i + 3) % size for i in range(length)], (0, 0)) for length in (3, 9)]
    try:
        logits = [decoder.first_logits([prompt])[0] for prompt in prompts]
        both = decoder.first_logits(prompts)
    except DOES_NOT_FIT as error:
        log.info("prompts are not decoded side by side: %s", error)
        return False
    difference = float((both.log_softmax(1) - torch.stack(logits).log_softmax(1)).abs().max())
    return difference <= noise
