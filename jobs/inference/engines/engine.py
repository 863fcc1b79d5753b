"""The interface of an engine: availability, command, capabilities."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ropewalk.cluster.errors import RopewalkError

GROUP = "ropewalk.engines"  # entry-point group: name → callable without arguments that returns an Engine
TOKEN_VARIABLE = "ROPEWALK_ENGINE_TOKEN"  # noqa: S105 - the name of the variable with the API token of an engine


class EngineError(RopewalkError):
    """An engine failed to start, to load its model, or to answer; the message has the cause from its log."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options for starting an engine."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port, chosen by the parent
    slots: int = 4  # requests answered at the same time; others wait
    threads: int | None = None  # None: one per available core
    gpus: int | None = None  # number of GPUs; None: all of the node
    context: int | None = None  # tokens of a request with its answer; None: the limit of the model
    name: str | None = None  # name of the model in the API; None: that of its directory
    draft: Path | None = None  # a smaller model for speculative decoding
    draft_tokens: int = 3  # maximum number of speculative tokens
    token: str | None = field(default=None, repr=False)  # API token of clients; None: not required
    extra: Mapping[str, str] = field(default_factory=dict)  # options of a single engine, such as the environment of vLLM


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Features of an engine beyond text in, text out."""

    token_ids: bool = True  # accepts prompts as token ids and returns sampled tokens (`return_token_ids`)
    continues: bool = False  # continues an answer of another process exactly (`continue_from`)
    logprobs: bool = True
    prompt_logprobs: bool = False  # log-probabilities of an echoed prompt
    json_schema: bool = False
    prompt_cache: bool = False  # the common beginning of prompts is not computed again
    drafts: bool = False  # accepts a draft (`EngineOptions.draft`), which changes no greedy answer
    batches: bool = False  # concurrent requests cost less than sequential ones


class Engine(Protocol):
    """A plug-in that starts one kind of engine for a model's directory."""

    name: str
    capabilities: Capabilities
    inherits_socket: bool  # inherits its listening socket as `--fd N`

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return why the engine cannot run on this machine, with the remedy, or None if it can."""
        ...

    def refuses(self, model: Path) -> str | None:
        """Return why the engine cannot load the model, as far as its configuration shows, or None."""
        ...

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Create the engine's form of a Hugging Face directory once and return its path; most load the directory itself.

        Raises ConfigError or DataError for a model that the engine cannot load.
        """
        ...

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Return the command line that serves the result of `prepare`; it never contains the token."""
        ...

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return variables to add to the environment of the process."""
        ...
