"""A user's program as the engine of a serving run."""

import os
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, Capabilities, Engine, EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.serving.serve.attached import TOKEN_FILE


class CommandEngine:
    """An engine started by a command in which {model}, {host}, {port}, {slots}, {context} and {token_file} are filled in."""

    name = "command"
    capabilities = Capabilities(token_ids=False, logprobs=False)
    inherits_socket = False

    def __init__(self, template: Sequence[str]) -> None:
        self.template = tuple(template)

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return None: a missing program is detected when it is started."""
        return None

    def refuses(self, model: Path) -> str | None:
        """Return None: an unsupported model is detected when the program is started."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Return the model's directory unchanged."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Return the command with values filled in. Raises ConfigError for an unknown placeholder."""
        values = {"model": model, "host": options.host, "port": options.port, "slots": options.slots}
        values |= {"context": options.context or "", "token_file": TOKEN_FILE}  # the file is made where the program starts
        try:
            arguments = [part.format(**values) for part in self.template]
        except (KeyError, IndexError, ValueError) as error:
            names = ", ".join(f"{{{key}}}" for key in values)
            raise ConfigError(f"engine_command: unknown placeholder {error}; known: {names}") from None
        return module_command("ropewalk.jobs.serving.serve.attached", "--parent", str(os.getpid()), "--", *arguments)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return the token that the program must require from clients."""
        return {TOKEN_VARIABLE: options.token or ""}


def select_engine(name: str, command: Sequence[str] | None, model: Path, gpus: int) -> Engine:
    """Return the configured engine for a model's directory and a number of GPUs. Raises ConfigError."""
    return CommandEngine(command) if command else find_engine(name, model, gpus)
