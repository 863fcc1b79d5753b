"""Where a run answers requests, and with which token: what a client of a serving run must know."""

import os
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI API of a run."""

    address: str  # http://HOST:PORT
    node: str  # the machine that it listens on
    variable: str | None = None  # the environment variable with the token that it asks for
    file: str | None = None  # the file with it
    tunnel: str = ""  # the command by which another machine reaches it
    tunnelled: str = ""  # the address that it has there, once that command runs

    def token(self) -> str | None:
        """The token to send; None: none is asked for. Raises ConfigError where it is asked for and not here."""
        if self.variable is not None:
            if found := os.environ.get(self.variable, "").strip():
                return found
            raise ConfigError(f"the endpoint asks for a token; set the environment variable {self.variable} to it")
        if self.file is not None:
            try:
                return Path(self.file).read_text().strip()
            except OSError as error:
                raise ConfigError(
                    f"the endpoint asks for the token in {self.file}, which cannot be read here: {error.strerror}"
                ) from None
        return None
