"""Secrets as environment variables: those of an agent's children, and removal of those of a surrounding run."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.secrets.masking import Mask
from ropewalk.cluster.secrets.store import FileStore

NAMES_VARIABLE = "ROPEWALK_SECRET_NAMES"  # of the secrets in this environment, with commas
FOLDER_VARIABLE = "ROPEWALK_SECRETS_FOLDER"  # where agents read them; unset: in the user's home


@dataclass(frozen=True)
class RunSecrets:
    """The secrets of a run. An agent keeps them to itself, and gives them to its children."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "RunSecrets":
        """Read the secrets that a run's record names. Raises ConfigError, with the remedy, if one is not set."""
        names = record.get("secrets") or []
        values = FileStore(secrets_folder(record)).read(names) if names else {}
        if missing := [name for name in names if name not in values]:
            raise ConfigError(f"{missing_secrets(missing, str(record['cluster']))}, then `ropewalk resume RUN`")
        return cls(values)

    @classmethod
    def inherited(cls) -> "RunSecrets":
        """Return the secrets in this process's own environment."""
        names = filter(None, os.environ.get(NAMES_VARIABLE, "").split(","))
        return cls({name: os.environ[name] for name in names if name in os.environ})

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """Variables of the children."""
        return {**self.values, NAMES_VARIABLE: ",".join(self.values)} if self.values else {}

    @cached_property
    def mask(self) -> Mask:
        return Mask(self.values)

    def masked(self, content: Any) -> Any:
        """Return content of a JSON file with the secrets in it masked."""
        return json.loads(self.mask.text(json.dumps(content))) if self.mask else content


NO_SECRETS = RunSecrets()


def secrets_folder(record: Mapping[str, Any]) -> Path:
    """Return the folder in which the agents of a run find its secrets. Raises ConfigError."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else FileStore.of_cluster(str(record["cluster"])).folder


def missing_secrets(names: Sequence[str], cluster: str) -> str:
    """Return a sentence about secrets that are not set, with the remedy."""
    on = "" if cluster == "local" else f" --on {cluster}"
    verb = "is" if len(names) == 1 else "are"
    return f"secrets: {', '.join(names)} {verb} not set on cluster {cluster!r}; type `ropewalk secret set {names[0]}{on}`"


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the secrets of the surrounding run, for processes that are not its children."""
    names = {*environment.get(NAMES_VARIABLE, "").split(","), NAMES_VARIABLE}
    return {name: value for name, value in environment.items() if name not in names}
