"""What an engine is to those who start one: whether it runs here, how it is started, and what it can do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ropewalk.cluster.errors import RopewalkError

GROUP = "ropewalk.engines"  # the entry-point group: a name → a callable without arguments that returns an Engine
TOKEN_VARIABLE = "ROPEWALK_ENGINE_TOKEN"  # noqa: S105 - the name of a variable, in which an engine of ours finds its API token


class EngineError(RopewalkError):
    """An engine does not start, does not load its model, or does not answer; the message has the cause out of its log."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is started."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one, which whoever starts the process chooses
    slots: int = 4  # requests that are answered at the same time; others wait
    threads: int | None = None  # that compute; None: as many as the cores that it may use
    gpus: int | None = None  # its share of the node's; None: all that the node was given
    context: int | None = None  # the most tokens of a request and its answer; None: what the model can see
    name: str | None = None  # what the API calls the model; None: the name of its directory
    draft: Path | None = None  # a smaller model that guesses tokens ahead; None: none
    draft_tokens: int = 3  # that it guesses at once, at most
    token: str | None = field(default=None, repr=False)  # that clients must send; None: none
    extra: Mapping[str, str] = field(default_factory=dict)  # of one engine alone, such as the environment of vLLM


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond text in, text out."""

    token_ids: bool = True  # takes prompts as token ids, and says which tokens it has drawn (`return_token_ids`)
    continues: bool = False  # goes on with an answer of another process exactly (`continue_from`)
    logprobs: bool = True
    prompt_logprobs: bool = False  # of a prompt that is echoed
    json_schema: bool = False
    prompt_cache: bool = False  # a prompt that begins as an earlier one is not computed again
    drafts: bool = False  # takes a draft (`EngineOptions.draft`), whose guesses change no greedy answer
    batches: bool = False  # requests at the same time cost less than one after another


class Engine(Protocol):
    """A plug-in: how one kind of engine is started for a model's directory."""

    name: str
    capabilities: Capabilities
    inherits_socket: bool  # takes the socket that it listens on from whoever starts it, as `--fd N`

    def unavailable(self, options: EngineOptions) -> str | None:
        """Why the engine cannot run on this machine, with the remedy; None if it can."""
        ...

    def refuses(self, model: Path) -> str | None:
        """Why the engine cannot load the model, as far as its configuration tells; None if nothing speaks against it."""
        ...

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Make what the engine loads of a model's Hugging Face directory, once, and return it; most load the directory itself.

        Raises ConfigError or DataError for a model that the engine cannot load.
        """
        ...

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """The command line that serves what `prepare` returned; never with the token in it."""
        ...

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """The variables that the process finds beside those of whoever starts it."""
        ...
