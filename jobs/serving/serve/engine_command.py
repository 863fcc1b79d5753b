"""A program of the user's as the engine of a serving run."""

import os
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import Capabilities, Engine, EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine


class CommandEngine:
    """An engine that is started by words in which {model}, {host}, {port}, {slots} and {context} are filled in."""

    name = "command"
    capabilities = Capabilities(token_ids=False, logprobs=False)
    inherits_socket = False

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    def unavailable(self, options: EngineOptions) -> str | None:
        """None: whether the program is there shows when it is started."""
        return None

    def refuses(self, model: Path) -> str | None:
        """None: what the program can load shows when it is started."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """The model's directory itself."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """The words with their values. Raises ConfigError for a word in braces that has none."""
        values = {"model": model, "host": options.host, "port": options.port, "slots": options.slots}
        values["context"] = options.context or ""
        try:
            words = [word.format(**values) for word in self.words]
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{key}}}" for key in values)
            raise ConfigError(f"engine_command: {error} cannot be filled in; known: {known}") from None
        return module_command("ropewalk.jobs.serving.serve.attached", "--parent", str(os.getpid()), "--", *words)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Nothing besides the environment of the replica."""
        return {}


def engine_of(name: str, words: Sequence[str] | None, model: Path, gpus: int) -> Engine:
    """The engine that a configuration names, for a model's directory and so many GPUs. Raises ConfigError."""
    return CommandEngine(words) if words else find_engine(name, model, gpus)
