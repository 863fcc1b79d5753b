"""Address and token of a serving run, for its clients."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from ropewalk.cluster.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """OpenAI-compatible API of a run."""

    address: str  # http://HOST:PORT
    node: str  # the machine that listens
    variable: str | None = None  # environment variable with the required token
    file: str | None = None  # file with the required token
    tunnel: Callable[[int], str] | None = None  # command that forwards a port of this machine, by its number, to the endpoint

    @property
    def is_here(self) -> bool:
        """True if this machine listens."""
        return self.node == os.uname().nodename

    @property
    def is_loopback(self) -> bool:
        """True if only programs of the machine that listens reach the address."""
        host = str(urlsplit(self.address).hostname)
        try:
            return ip_address(host).is_loopback
        except ValueError:  # a name
            return host == "localhost"

    @property
    def tunnel_command(self) -> str:
        """Command that makes the endpoint reachable under its own port on this machine; empty if none is needed."""
        return self.tunnel(urlsplit(self.address).port or 80) if self.tunnel else ""

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
