"""routes.json: which replicas answer for which version of a model, and what each name of the API means."""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_atomically


class Replica(Section):
    """An engine that answers at an address. One that left the file gets no new request; what it has begun it ends."""

    id: str = Field(min_length=1, max_length=200, description="unique among all replicas, also of the past")
    url: str = Field(pattern=r"^http://[^/\s]+$", description="such as http://127.0.0.1:4321; plain HTTP, no path")
    engine: str = Field(description="the engine's name: transformers, llamacpp, vllm ...")
    slots: int = Field(default=1, ge=1, description="requests that it answers at the same time")
    model_name: str | None = Field(
        default=None,
        description="what it reads as `model`; unset: the version, or for engines that are not ours what the client wrote",
    )


class Version(Section):
    """A version of a model, and who answers for it."""

    replicas: tuple[Replica, ...] = Field(default=(), description="none: requests wait until there is one, or their deadline")
    model: str = Field(default="", description="the run or directory that was asked for")
    draining: bool = Field(default=False, description="no alias leads to it any more; whoever asks for it by name is refused")


class Alias(Section):
    """A name of the API that leads to a version, and for a share of the conversations to another one."""

    stable: str
    canary: str | None = None
    share: float = Field(default=0.0, ge=0, le=1, description="of conversations that the canary answers")

    def version_for(self, conversation: bytes) -> str:
        """The version that answers a conversation: a function of its bytes, so that all its requests meet the same one."""
        if self.canary is None:
            return self.stable
        drawn = int.from_bytes(hashlib.blake2b(conversation, digest_size=8, person=b"canary").digest(), "big") / 2**64
        return self.canary if drawn < self.share else self.stable


class Routes(Section):
    """All of routes.json."""

    versions: dict[str, Version] = Field(default_factory=dict, description="by the registry's id")
    aliases: dict[str, Alias] = Field(default_factory=dict, description="names that the API takes as `model`")
    default: str | None = Field(default=None, description="the alias or version of a request that names no model")
    accepting: bool = Field(default=True, description="false: new requests are refused (503), open ones are answered")
    retry_after: int = Field(default=5, ge=1, description="seconds that a refused client is told to wait")

    @model_validator(mode="after")
    def _names(self) -> Self:
        for alias, to in self.aliases.items():
            for version in (to.stable, to.canary):
                if version is not None and version not in self.versions:
                    raise ValueError(f"aliases.{alias}: no version {version}; versions has {', '.join(self.versions) or 'none'}")
        both = self.versions.keys() & self.aliases.keys()
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: a name of an alias and of a version; one of the two needs another")
        if self.default is not None and self.default not in self.versions.keys() | self.aliases.keys():
            raise ValueError(f"default: {self.default} is neither an alias nor a version")
        ids = [replica.id for version in self.versions.values() for replica in version.replicas]
        if twice := {one for one in ids if ids.count(one) > 1}:
            raise ValueError(f"replicas: {', '.join(sorted(twice))} named twice; an id is of one replica")
        return self


def read_routes(path: Path) -> Routes:
    """The routes in a file. Raises ConfigError for one that is not valid; OSError where there is none."""
    try:
        return Routes.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: no valid routes: {error}; the controller writes this file") from error


def write_routes(path: Path, routes: Routes) -> None:
    """Publish routes: a reader sees the old ones or these."""
    write_atomically(path, routes.model_dump_json(indent=1), durable=False)
