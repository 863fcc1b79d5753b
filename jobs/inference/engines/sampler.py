"""The interface below the API of built-in engines: token ids in, sampled tokens out, requests side by side."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from ropewalk.jobs.inference.engines.engine import Capabilities

UNKNOWN = -1  # id of a token that the engine does not report
Ended = Literal["stop", "length"]  # as in OpenAI's API: end token or complete JSON, or max_tokens


class Top(NamedTuple):
    """An alternative token at a position, and its log-probability."""

    token: int
    logprob: float


class Drawn(NamedTuple):
    """A sampled token, with log-probabilities of the model itself, before temperature and cuts.

    A token with empty text that ends with `stop` is the end of a text, UNKNOWN or not.
    """

    token: int
    logprob: float | None = None
    top: tuple[Top, ...] = ()
    ended: Ended | None = None  # set on the last token
    text: str | None = None  # its text, if tokens before it are unknown


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of an answer."""

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # minimum probability relative to the likeliest token
    seed: int = 0  # the same request with the same seed gets the same answer
    logprobs: int | None = None  # number of alternatives at each position; None: no log-probabilities
    bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of tokens
    json_schema: Mapping[str, Any] | None = None  # schema of the answer; empty: any JSON object
    continued: int = 0  # number of last prompt tokens that another process has sampled
    end: bool = True  # end the answer at an end-of-text token


class Sampler(Protocol):
    """Samples tokens for several requests at the same time."""

    capabilities: Capabilities
    vocabulary: int  # token ids are below it
    context: int  # maximum tokens of a prompt with its answer
    slots: int
    ends: frozenset[int]  # tokens that end a text

    def draw(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Drawn]:
        """Yield the tokens after the prompt, including the one that ends the text.

        Closing the generator frees the slot. Raises ApiError for features that the engine lacks.
        """
        ...

    async def prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[Drawn]:
        """Return the log-probability of each token of a prompt after those before it; the first has none.

        Called only if the sampler has that capability.
        """
        ...

    def load(self) -> tuple[int, int]:
        """Return the numbers of running and of waiting requests."""
        ...

    def close(self) -> None:
        """Stop sampling and free resources."""
        ...
