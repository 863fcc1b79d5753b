"""Address and token of a serving run, for its clients."""

import os
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """OpenAI-compatible API of a run."""

    address: str  # http://HOST:PORT
    node: str  # the machine that listens
    variable: str | None = None  # environment variable with the required token
    file: str | None = None  # file with the required token
    tunnel: str = ""  # command that forwards the port to another machine
    tunnelled: str = ""  # address there while that command runs

    def token(self) -> str | None:
        """Return the token to send, or None if none is required. Raises ConfigError if the required token is not available."""
        if self.variable is not None:
            if token := os.environ.get(self.variable, "").strip():
                return token
            raise ConfigError(f"the endpoint requires a token; set the environment variable {self.variable} to it")
        if self.file is not None:
            try:
                return Path(self.file).read_text().strip()
            except OSError as error:
                raise ConfigError(
                    f"the endpoint requires the token in {self.file}, which cannot be read here: {error.strerror}"
                ) from None
        return None
