"""Generate text after a prompt, greedily or from a seed; independent of what is generated beside it."""

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
    """The text generated after a prompt."""

    tokens: tuple[int, ...]  # including an end-of-text token
    text: str  # up to the first stop text
    ended: Ended


class Writer:
    """Generates with one model, several texts side by side if the model allows it.

    Decoding side by side changes logits by rounding. A text with a choice within rounding of a tie is therefore decoded again
    alone: every text equals that of its prompt alone.
    """

    def __init__(self, opened: OpenModel, batch_size: int | None = None) -> None:
        """Decode at most `batch_size` prompts side by side."""
        self.opened = opened
        self.batch_size = batch_size or (CPU_PROMPTS if opened.device.type == "cpu" else GPU_PROMPTS)
        self._decoder = Decoder(opened.model, end_tokens(opened), self._is_stopped)
        self._noise = token_noise(opened.model.dtype)
        self._side_by_side: bool | None = None
        self._stops: dict[tuple[str, ...], Stops] = {}

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Generated]]:
        """Generate after each prompt; yield (prompt number, text), the shortest prompts first. Raises DataError."""
        fit = [Prompt(fitting(prompt.tokens, sampling.max_new_tokens, self.opened.max_length), prompt.seed) for prompt in prompts]
        order = sorted(range(len(fit)), key=lambda number: (len(fit[number].tokens), number))
        size = self.batch_size if len(fit) > 1 and self._may_share(sampling) else 1
        for begin in range(0, len(order), size):
            numbers = order[begin : begin + size]
            texts = self._decoder.together([fit[n] for n in numbers], sampling, self._noise) if len(numbers) > 1 else []
            for index, number in enumerate(numbers):
                done = texts[index] if texts and not texts[index].doubtful else self._decoder.alone(fit[number], sampling)
                yield number, self._to_generated(done, sampling)

    def _may_share(self, sampling: Sampling) -> bool:
        """Return True if prompts may be decoded side by side; the sets of top-k and top-p do not depend on one lead alone."""
        if sampling.temperature != 0 and (sampling.top_k or sampling.top_p < 1):
            return False
        if self._side_by_side is None:
            self._side_by_side = pads_prompts(self._decoder, self._noise)
        return self._side_by_side

    def _to_generated(self, text: Text, sampling: Sampling) -> Generated:
        assert text.ended is not None
        shown = text.tokens[:-1] if text.ended == "end of text" else text.tokens
        return Generated(tokens=tuple(text.tokens), text=self._cut(shown, sampling.stop), ended=text.ended)

    def _cut(self, tokens: Sequence[int], texts: tuple[str, ...]) -> str:
        stops = self._stops_of(texts)
        return stops.cut(stops.search_text(tokens, self._text))

    def _is_stopped(self, tokens: Sequence[int], texts: tuple[str, ...]) -> bool:
        stops = self._stops_of(texts)
        return stops.occur_in(stops.search_text(tokens, self._text))

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
    """Generate after each prompt (token ids), in order.

    A text depends on the prompt, the seed and the prompt's number (unset: its index) alone. A prompt that leaves no room loses
    its beginning. Raises DataError for an empty prompt, or if `max_new_tokens` leaves no room for a prompt.
    """
    requests = [Prompt(prompt, (seed, numbers[k] if numbers is not None else k)) for k, prompt in enumerate(prompts)]
    texts = dict(Writer(opened).write(requests, sampling))
    yield from (texts[number] for number in range(len(requests)))


def fitting(prompt: Sequence[int], new_tokens: int, max_length: int) -> list[int]:
    """Return the end of a prompt that leaves room for the answer. Raises DataError."""
    room = max_length - new_tokens
    if room < 1:
        raise DataError(f"{new_tokens} new tokens leave no room for a prompt: the model sees {max_length}; ask for fewer")
    if not prompt:
        raise DataError("a prompt is empty; put the model's prefix token there")
    return list(prompt)[-room:]


def end_tokens(opened: OpenModel) -> set[int]:
    """Return the tokens with which the model ends a text: of its tokenizer and of its generation configuration."""
    configured: Any = getattr(getattr(opened.model, "generation_config", None), "eos_token_id", None)
    candidates = {opened.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return {int(token) for token in candidates if token is not None}


def pads_prompts(decoder: Decoder, noise: float) -> bool:
    """Return True if padding a prompt does not change its next tokens; a recurrent state, for one, absorbs padding."""
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
