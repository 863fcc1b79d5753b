"""What a gateway is told when it starts: one JSON file, without a secret in it."""

import json
import os
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import ConfigError


class GatewaySettings(Section):
    """Everything that the keeper and its gateways read at their start."""

    host: str = Field(default="127.0.0.1", description="address that is listened on; 0.0.0.0: every interface")
    port: int = Field(default=0, ge=0, le=65535, description="0: a free one, or the one that `address_file` tells of")
    routes: Path = Field(description="routes.json, on a local disk")
    address_file: Path = Field(description="where the keeper writes {address, port, pid}, atomically, once it listens")
    load_file: Path | None = Field(default=None, description="where the load is written twice a second; unset: nowhere")
    token_variable: str | None = Field(default=None, description="environment variable with the token that clients must send")
    token_file: Path | None = Field(default=None, description="file with the token that clients must send")
    deadline_seconds: float = Field(default=300.0, gt=0, description="of a request that sets none itself")
    longest_deadline_seconds: float = Field(default=3600.0, gt=0, description="more than this nobody can ask for")
    queue_per_slot: float = Field(default=2.0, ge=0, description="requests that may wait, for each slot of a version")
    prefix_block: int = Field(default=256, ge=16, description="bytes of a prompt by which prefixes are told apart")
    imbalance: float = Field(default=0.25, ge=0, description="share of its slots by which a replica may be ahead for a prefix")
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="of a request; a larger one is refused (413)")
    max_answer_bytes: int = Field(default=32 * 2**20, ge=2**16, description="of an answer that is kept for continuation")
    max_connections: int = Field(default=10_000, ge=1, description="of clients; more wait in the kernel's queue")
    journal_bytes: int = Field(default=2**30, ge=2**24, description="memory of open exchanges at most")
    idle_seconds: float = Field(default=75.0, gt=0, description="a connection without a request for so long is closed")
    header_seconds: float = Field(default=30.0, gt=0, description="a request must have arrived within this time")
    stalled_seconds: float = Field(default=120.0, gt=0, description="a client that takes no byte for so long is let go")
    drain_seconds: float = Field(default=30.0, ge=0, description="after SIGTERM open requests may end within this time")
    cache_bytes: int = Field(default=0, ge=0, description="of exact answers to greedy requests that are kept; 0: none")
    orphan_seconds: float | None = Field(
        default=None, ge=0, description="the keeper leaves so long after the death of its parent; unset: it stays"
    )
    feedback_folder: Path | None = Field(default=None, description="where exchanges and feedback are kept; unset: nowhere")
    capture: dict[str, object] | None = Field(default=None, description="what is captured; unset: a ledger without content")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_variable is not None and self.token_file is not None:
            raise ValueError("token_variable and token_file: only one of them")
        return self

    def token(self) -> bytes | None:
        """The token that clients must send; None: none is asked for. Raises ConfigError where it is named and not there."""
        if self.token_variable is not None:
            if not (found := os.environ.get(self.token_variable, "").strip()):
                raise ConfigError(f"auth: the environment variable {self.token_variable} is empty; set it to the token")
            return found.encode()
        if self.token_file is not None:
            try:
                found = self.token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"auth: {self.token_file}: {error}; name a readable file that holds the token") from error
            if not found:
                raise ConfigError(f"auth: {self.token_file} is empty; write the token into it")
            return found.encode()
        return None


def read_settings(path: Path) -> GatewaySettings:
    """The settings in a JSON file. Raises ConfigError."""
    try:
        return GatewaySettings.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: no valid settings of a gateway: {error}") from error
