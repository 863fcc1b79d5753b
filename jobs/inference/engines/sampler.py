"""What stands below the API of our engines: token ids in, drawn tokens out, one request beside others."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from ropewalk.jobs.inference.engines.engine import Capabilities

UNKNOWN = -1  # a token of which the engine does not say which it was
Ended = Literal["stop", "length"]  # OpenAI's words: by a token that ends texts or a complete JSON, or by max_tokens


class Top(NamedTuple):
    """A token that could have stood at a place, and its log-probability."""

    token: int
    logprob: float


class Drawn(NamedTuple):
    """A token that was drawn, and how likely tokens were there, by the model itself: before temperature and cuts.

    One without text (`text` is empty) that ends with `stop` is the end of a text, UNKNOWN or not.
    """

    token: int
    logprob: float | None = None
    top: tuple[Top, ...] = ()
    ended: Ended | None = None  # nothing follows
    text: str | None = None  # what it adds to the text, where tokens before it are unknown


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn."""

    max_tokens: int
    temperature: float = 1.0  # 0: the likeliest token, always
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # only tokens at least so likely, compared with the likeliest
    seed: int = 0  # the same request with the same seed gets the same answer
    logprobs: int | None = None  # so many of the likeliest tokens at each place; None: not asked
    bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of tokens
    json_schema: Mapping[str, Any] | None = None  # what the answer must be; an empty one: any JSON
    continued: int = 0  # so many of the last tokens of the prompt are drawn already, by another process
    end: bool = True  # whether a token that ends texts ends the answer


class Sampler(Protocol):
    """Draws tokens; several requests at the same time."""

    capabilities: Capabilities
    vocabulary: int  # token ids are below it
    context: int  # tokens of a prompt and its answer at most
    slots: int
    ends: frozenset[int]  # tokens that end a text

    def draw(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Drawn]:
        """What follows the prompt, token by token, the one that ends the text included.

        Closing the generator frees the slot. Raises ApiError for what the engine cannot do.
        """
        ...

    async def prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[Drawn]:
        """How likely each token of a prompt was after those before it; of the first one nothing is known.

        Asked only of a sampler with that capability.
        """
        ...

    def load(self) -> tuple[int, int]:
        """Requests that are answered, and that wait."""
        ...

    def close(self) -> None:
        """Stop drawing, and free what was used."""
        ...
