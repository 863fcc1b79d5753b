"""Address, token and certificate of a serving run, for its clients."""

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from ropewalk.cluster.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """OpenAI-compatible API of a run."""

    address: str  # http://HOST:PORT, or https://HOST:PORT with a certificate
    node: str  # the machine that listens
    variable: str | None = None  # environment variable with the required token
    file: str | None = None  # file with the required token
    certificate: str | None = None  # PEM file with the certificate chain of an HTTPS endpoint
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
        return None if self.file is None else next(iter(read_tokens(Path(self.file)))).decode()

    def verify(self) -> ssl.SSLContext | bool:
        """Return what a client checks the endpoint's certificate against: the certificate itself, under whatever host name.

        Raises ConfigError if it cannot be read here.
        """
        if self.certificate is None:
            return True
        try:
            context = ssl.create_default_context(cafile=self.certificate)
        except OSError as error:  # also ssl.SSLError
            raise ConfigError(f"the endpoint's certificate {self.certificate} cannot be read here: {error}") from None
        context.check_hostname = False  # a tunnel has a name of its own
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


_NAMED_TOKEN = re.compile(r"([\w.-]{1,100}):[ \t]+(\S+)")


def read_tokens(path: Path) -> dict[bytes, str | None]:
    """Read a file with one token, or with lines `name: token`. Raises ConfigError."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth: {path}: {error}; name a readable file that holds the token") from error
    if not lines:
        raise ConfigError(f"auth: {path} is empty; write the token into it")
    named = [_NAMED_TOKEN.fullmatch(line) for line in lines]
    if len(lines) == 1 and named[0] is None:
        return {lines[0].encode(): None}
    tokens = {match[2].encode(): match[1] for match in named if match is not None}
    if len(tokens) != len(lines) or len(set(tokens.values())) != len(lines):
        raise ConfigError(f"auth: {path}: several tokens need lines `name: token`, each name and token once")
    return dict(tokens)
