"""Inputs of a submission that are on the hub or at a URL: looked up, pinned in the configuration, and fetched."""

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.data_mounts import mounted_path
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.hub.names import SCHEME, HubName, parse_plain, parse_url
from ropewalk.cluster.run.names import STORE_FOLDER, STORE_VARIABLE

if TYPE_CHECKING:
    from ropewalk.cluster.hub.choose import Need
    from ropewalk.cluster.hub.lookup import Version
    from ropewalk.cluster.hub.store import Store

_FILE_ENDINGS = (".jsonl", ".json", ".gz", ".zst", ".parquet", ".pq", ".csv", ".txt", ".yaml", ".yml", ".arrow", ".warc", ".wet")

_ONE_WORD = re.compile(r"[A-Za-z0-9][\w.-]*")


class FetchedInput(NamedTuple):
    """An input of a run that is fetched: its key, its name with the commit, and its path on the cluster."""

    key: str
    name: str
    path: str


@dataclass
class Inputs:
    """Inputs of the runs of one submission; each name is looked up once."""

    backend: Backend
    root: Path  # of the runs
    versions: "dict[tuple[HubName | str, Need], Version]" = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """The store: $ROPEWALK_STORE, else a folder beside the runs."""
        variable = os.environ.get(STORE_VARIABLE) if self.backend.shares_files else None
        return Path(variable).expanduser().absolute() if variable else self.root.absolute() / STORE_FOLDER

    @cached_property
    def store(self) -> "Store | None":
        """The store, if this machine can access it."""
        from ropewalk.cluster.hub.store import Store  # imports huggingface_hub

        return Store(self.folder) if self.backend.shares_files else None

    def pin(self, config: JobConfig) -> tuple[JobConfig, list[FetchedInput]]:
        """Return a configuration with paths in the store instead of names, and what these stand for.

        Raises ConfigError for a name that is neither here nor on the hub, and for data://NAME without a mount of that name.
        """
        fetched: list[FetchedInput] = []

        def resolve(key: str, value: str, need: str) -> str:
            value = mounted_path(value, self.backend.mounts, self.backend.cluster.name)
            name = self._name_of(value, cast("Need", need))
            if name is None:
                return value
            version = self._version(key, value, name, cast("Need", need))
            fetched.append(FetchedInput(key, version.location, self.backend.path_there(self.folder / version.path)))
            return fetched[-1].path

        return config.with_inputs(resolve), fetched

    def _version(self, key: str, value: str, name: HubName | str, need: "Need") -> "Version":
        from ropewalk.cluster.hub.lookup import look_up

        if (name, need) not in self.versions:
            shown = value if "://" in value else str(name)
            try:
                self.versions[name, need] = look_up(name, need, f"{key}: {shown}", self.store)
            except ConfigError as error:
                if need != "tokens" or "://" in value:
                    raise
                raise ConfigError(f"{error}; or make it with `ropewalk run preprocess output={name}`") from None
        return self.versions[name, need]

    def _name_of(self, value: str, need: "Need") -> HubName | str | None:
        """Return the name on the hub or URL that is to be fetched; None for what exists, or is read where it is."""
        if value.startswith(SCHEME):
            return parse_url(value) or value
        if "://" in value:
            return value if need == "model" else None  # documents and tokens are read from any file system
        if need == "tokenizer" and _ONE_WORD.fullmatch(value) and not Path(value).exists():
            return HubName(repository=value, is_dataset=False)  # an old name, such as gpt2
        name = parse_plain(value, is_dataset=need not in {"model", "tokenizer"})
        if name is None or (name.revision is None and name.repository.endswith(_FILE_ENDINGS)):
            return None
        path = Path(value)
        if path.is_absolute():
            local = self.backend.path_here(value)
            return None if local is not None and local.exists() else name
        return None if need == "file" or path.exists() else name

    def pending(self) -> "list[Version]":
        """Return the versions that the store of this machine does not have; all of a cluster whose files it does not see."""
        return [version for version in self.versions.values() if self.store is None or not self.store.has(version.folder)]

    def path_here(self, path: str) -> Path | None:
        """Return this machine's path of a file of the cluster, None also for an input that is still to be fetched."""
        folders = [self.backend.path_there(self.folder / version.folder) for version in self.pending()]
        is_pending = any(Path(path).is_relative_to(folder) for folder in folders)
        return None if is_pending else self.backend.path_here(path)

    def fetch(self) -> None:
        """Fetch what is missing. Raises ConfigError, DataError, StorageError, BackendError."""
        if not (pending := self.pending()):
            return
        if self.store is not None:
            for version in pending:
                version.fetch(self.store)
        else:
            self.backend.fetch([(version.location, version.need) for version in pending], self.backend.path_there(self.folder))
