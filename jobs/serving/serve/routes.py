"""routes.json: the replicas of each version, and the version behind each API name."""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.section import Section


class Replica(Section):
    """An engine and its address. One that is removed from the file finishes its requests and gets no new ones."""

    id: str = Field(min_length=1, max_length=200, description="unique among all replicas, also former ones")
    url: str = Field(pattern=r"^http://[^/\s]+$", description="such as http://127.0.0.1:4321; HTTP without a path")
    engine: str = Field(description="name of the engine: transformers, llamacpp, vllm ...")
    slots: int = Field(default=1, ge=1, description="requests it answers concurrently")
    model_name: str | None = Field(
        default=None,
        description="value it expects as `model`; unset: the version, or for foreign engines the client's value",
    )


class Version(Section):
    """A version of a model and its replicas."""

    replicas: tuple[Replica, ...] = Field(default=(), description="empty: requests wait for a replica until their deadline")
    model: str = Field(default="", description="run or directory of the version")
    draining: bool = Field(default=False, description="no alias points to it; requests by its name are refused")


class Alias(Section):
    """An API name that points to a version, and for a share of the conversations to a canary."""

    stable: str
    canary: str | None = None
    share: float = Field(default=0.0, ge=0, le=1, description="share of conversations answered by the canary")

    def version_for(self, conversation: bytes) -> str:
        """Return the version for a conversation, by a hash, so that all its requests get the same one."""
        if self.canary is None:
            return self.stable
        drawn = int.from_bytes(hashlib.blake2b(conversation, digest_size=8, person=b"canary").digest(), "big") / 2**64
        return self.canary if drawn < self.share else self.stable


class Routes(Section):
    """Content of routes.json."""

    versions: dict[str, Version] = Field(default_factory=dict, description="by id of the registry")
    aliases: dict[str, Alias] = Field(default_factory=dict, description="API names accepted as `model`")
    default: str | None = Field(default=None, description="alias or version for requests without `model`")
    accepting: bool = Field(default=True, description="false: new requests are refused (503), open ones are finished")
    retry_after: int = Field(default=5, ge=1, description="Retry-After of refused requests in seconds")

    @model_validator(mode="after")
    def _names(self) -> Self:
        for alias, to in self.aliases.items():
            for version in (to.stable, to.canary):
                if version is not None and version not in self.versions:
                    raise ValueError(f"aliases.{alias}: no version {version}; versions has {', '.join(self.versions) or 'none'}")
        both = self.versions.keys() & self.aliases.keys()
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: used as the name of both an alias and a version")
        if self.default is not None and self.default not in self.versions.keys() | self.aliases.keys():
            raise ValueError(f"default: {self.default} is neither an alias nor a version")
        ids = [replica.id for version in self.versions.values() for replica in version.replicas]
        if duplicates := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"replicas: {', '.join(sorted(duplicates))} occur twice; ids must be unique")
        return self


def read_routes(path: Path) -> Routes:
    """Read routes from a file. Raises ConfigError if it is invalid, OSError if it is missing."""
    try:
        return Routes.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: invalid routes: {error}") from error


def write_routes(path: Path, routes: Routes) -> None:
    """Write routes atomically."""
    write_atomically(path, routes.model_dump_json(indent=1), durable=False)
