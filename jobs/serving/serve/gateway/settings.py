"""Settings of a gateway: one JSON file without secrets."""

import json
import os
import ssl
from pathlib import Path

from pydantic import Field, ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.section import Section
from ropewalk.jobs.runs.show.endpoint import read_tokens
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.serve.config import AuthConfig, TlsConfig


class GatewaySettings(Section):
    """Settings that gateways read at start."""

    routes: Path = Field(description="routes.json, on a local disk")
    load_file: Path | None = Field(default=None, description="file the load is written to twice a second; unset: none")
    auth: AuthConfig | None = Field(default=None, description="source of the token that clients must send; unset: none")
    tls: TlsConfig | None = Field(default=None, description="certificate and key; unset: no TLS")
    deadline_seconds: float = Field(default=300.0, gt=0, description="default deadline of a request")
    longest_deadline_seconds: float = Field(default=3600.0, gt=0, description="maximum deadline that a request can set")
    queue_seconds: float = Field(default=60.0, gt=0, description="seconds a request waits for a slot before it is refused (429)")
    queue_requests: int = Field(default=256, ge=0, description="waiting requests of a version; more are refused (429)")
    prefix_block: int = Field(default=256, ge=16, description="block size in bytes for comparing prompt prefixes")
    imbalance: float = Field(
        default=0.25, ge=0, description="extra load, as share of its slots, a replica may have to be chosen for its cached prefix"
    )
    max_body_bytes: int = Field(
        default=8 * 2**20, ge=1024, description="maximum size of a request; larger ones are refused (413)"
    )
    max_answer_bytes: int = Field(
        default=32 * 2**20, ge=2**16, description="maximum size of an answer, which is kept for continuation"
    )
    max_connections: int = Field(default=10_000, ge=1, description="maximum number of client connections; more are closed")
    peer_connections: int = Field(default=5_000, ge=1, description="maximum number of them from the same address")
    max_open_bytes: int = Field(default=2**29, ge=2**20, description="maximum size of all open requests; more are refused (503)")
    idle_seconds: float = Field(
        default=75.0, gt=0, description="seconds after which a connection without a complete request head is closed"
    )
    body_seconds: float = Field(default=30.0, gt=0, description="seconds within which a request's body must have arrived")
    linger_seconds: float = Field(default=1.0, ge=0, description="seconds a client gets to read why its body was refused")
    stalled_seconds: float = Field(
        default=120.0, gt=0, description="seconds after which a client that receives nothing is disconnected"
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="seconds that open requests get when the gateway stops")
    feedback_folder: Path | None = Field(default=None, description="folder for exchanges and feedback; unset: none")
    capture: CaptureConfig | None = Field(default=None, description="capture settings; unset: a ledger without content")

    @property
    def token_file(self) -> Path | None:
        return Path(self.auth.file) if self.auth is not None and self.auth.file is not None else None

    def tokens(self) -> dict[bytes, str | None]:
        """Return the accepted tokens and the names of their clients; empty: no token is required.

        Raises ConfigError if the source is missing, empty or malformed.
        """
        if self.auth is not None and self.auth.variable is not None:
            if not (token := os.environ.get(self.auth.variable, "").strip()):
                raise ConfigError(f"auth: the environment variable {self.auth.variable} is empty; set it to the token")
            return {token.encode(): None}
        return {} if self.token_file is None else read_tokens(self.token_file)

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the server's TLS context, or None without a certificate. Raises ConfigError if it cannot be loaded."""
        if self.tls is None:
            return None
        cert, key = self.tls.cert, self.tls.key
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:  # also ssl.SSLError
            raise ConfigError(f"tls: {cert}, {key}: {error}; name PEM files that belong together") from error
        return context


def read_settings(path: Path) -> GatewaySettings:
    """Read settings from a JSON file. Raises ConfigError."""
    try:
        return GatewaySettings.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: invalid gateway settings: {error}") from error
