"""Settings of a gateway: one JSON file without secrets."""

import json
import os
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import ConfigError


class GatewaySettings(Section):
    """Settings that the keeper and its gateways read at start."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(default=0, ge=0, le=65535, description="0: the port in `address_file`, else a free one")
    routes: Path = Field(description="routes.json, on a local disk")
    address_file: Path = Field(description="file the keeper writes {address, port, pid} to, atomically, once it listens")
    load_file: Path | None = Field(default=None, description="file the load is written to twice a second; unset: none")
    token_variable: str | None = Field(default=None, description="environment variable with the token that clients must send")
    token_file: Path | None = Field(default=None, description="file with the token that clients must send")
    deadline_seconds: float = Field(default=300.0, gt=0, description="default deadline of a request")
    longest_deadline_seconds: float = Field(default=3600.0, gt=0, description="maximum deadline that a request can set")
    queue_per_slot: float = Field(default=2.0, ge=0, description="waiting requests allowed per slot of a version")
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
    max_connections: int = Field(
        default=10_000, ge=1, description="maximum number of client connections; more wait in the kernel's queue"
    )
    journal_bytes: int = Field(default=2**30, ge=2**24, description="maximum memory of open exchanges")
    idle_seconds: float = Field(default=75.0, gt=0, description="seconds after which a connection without a request is closed")
    header_seconds: float = Field(default=30.0, gt=0, description="seconds within which a request must have arrived")
    stalled_seconds: float = Field(
        default=120.0, gt=0, description="seconds after which a client that reads nothing is disconnected"
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="seconds that open requests get after SIGTERM")
    cache_bytes: int = Field(default=0, ge=0, description="size of the cache of answers to greedy requests; 0: no cache")
    orphan_seconds: float | None = Field(
        default=None, ge=0, description="seconds after its parent's death at which the keeper exits; unset: it stays"
    )
    feedback_folder: Path | None = Field(default=None, description="folder for exchanges and feedback; unset: none")
    capture: dict[str, object] | None = Field(default=None, description="capture settings; unset: a ledger without content")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_variable is not None and self.token_file is not None:
            raise ValueError("token_variable and token_file: only one of them")
        return self

    def token(self) -> bytes | None:
        """Return the token that clients must send, or None. Raises ConfigError if its source is missing or empty."""
        if self.token_variable is not None:
            if not (token := os.environ.get(self.token_variable, "").strip()):
                raise ConfigError(f"auth: the environment variable {self.token_variable} is empty; set it to the token")
            return token.encode()
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"auth: {self.token_file}: {error}; name a readable file that holds the token") from error
            if not token:
                raise ConfigError(f"auth: {self.token_file} is empty; write the token into it")
            return token.encode()
        return None


def read_settings(path: Path) -> GatewaySettings:
    """Read settings from a JSON file. Raises ConfigError."""
    try:
        return GatewaySettings.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: invalid gateway settings: {error}") from error
