"""Read access to the registry of models: versions of a model, and aliases such as `production` that point to versions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.numbered import Entries, numbers_in, parse_entry, read_entry, read_numbered
from ropewalk.jobs.runs.show.status import roots

MODELS, VERSIONS, ALIASES = "models", "versions", "aliases"  # folders: ROOT/models/NAME/versions, ROOT/models/NAME/aliases/ALIAS
DIRECTORIES = "directories"  # ROOT/models/NAME/directories: checkpoints as Hugging Face directories, by version number
REMOVED = "removed"  # ROOT/models/NAME/removed: a file for each removed version, by its number
PRODUCTION, CANDIDATE = "production", "candidate"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Version(BaseModel):
    """Immutable version of a model: a checkpoint of a run, or a Hugging Face directory."""

    model_config = ConfigDict(frozen=True, extra="allow")  # keys of a later version of the program are kept

    model: str
    number: int
    root: Path  # of the runs, on this machine
    run: str | None = None  # id of a run under the root
    step: int | None = None
    path: str | None = None  # of the directory
    weights: str  # hash of the weights
    created: float
    by: str
    lineage: Mapping[str, Any] = {}
    removed: Mapping[str, Any] | None = None  # {by, time, reason}; its weights may be gone

    @property
    def id(self) -> str:
        """NAME@NUMBER."""
        return f"{self.model}@{self.number}"

    @property
    def ref(self) -> str:
        """Reference for job files: RUN@STEP, or the directory."""
        return self.path if self.path is not None else f"{self.run}@{self.step}"

    @property
    def directory(self) -> Path:
        """Hugging Face directory of the version; for a checkpoint it exists only after an export."""
        if self.path is not None:
            return Path(self.path)
        return self.root / MODELS / self.model / DIRECTORIES / f"{self.number:06d}"

    def plain(self) -> dict[str, Any]:
        """Return the version as plain values for JSON."""
        return {"version": self.id, "ref": self.ref, **self.model_dump(exclude={"root", "model", "number"})}


class Move(BaseModel):
    """Change of an alias to another version, or to none."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    alias: str
    number: int
    version: int | None
    kind: Literal["promote", "rollback", "withdraw"]
    by: str
    time: float
    gates: tuple[Mapping[str, Any], ...] = ()  # evidence: run, conditions and figures of each gate
    forced: str | None = None  # reason for a change without a passed gate
    key: str | None = None  # idempotency key
    reason: str | None = None

    @property
    def version_id(self) -> str | None:
        """NAME@NUMBER of the new version; None if the alias was withdrawn."""
        return f"{self.model}@{self.version}" if self.version is not None else None

    def plain(self) -> dict[str, Any]:
        """Return the change as plain values for JSON."""
        return {**self.model_dump(exclude={"model"}), "version": self.version_id, "gates": list(self.gates)}


class RegisteredModel:
    """A model of the registry; methods read the current files."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name

    @property
    def folder(self) -> Path:
        """ROOT/models/NAME."""
        return self.root / MODELS / self.name

    def versions(self) -> list[Version]:
        """Return all versions, oldest first. Raises DamagedFileError."""
        return [self._version(number, entry) for number, entry in read_numbered(self.folder / VERSIONS).items()]

    def version(self, number: int) -> Version:
        """Return a version by its number. Raises ConfigError, DamagedFileError."""
        numbers = numbers_in(self.folder / VERSIONS)
        entry = read_entry(self.folder / VERSIONS, number) if number in numbers else None
        if entry is None:
            versions = ", ".join(map(str, numbers)) or "none"
            raise ConfigError(f"{self.name}@{number}: there is no such version; versions of {self.name}: {versions}")
        return self._version(number, entry)

    def _version(self, number: int, entry: Mapping[str, Any]) -> Version:
        about = {"model": self.name, "number": number, "root": self.root}
        values = {**entry, **about, "removed": read_entry(self.folder / REMOVED, number)}
        return parse_entry(Version, self.folder / VERSIONS, number, values)

    def aliases(self) -> dict[str, Version]:
        """Return the version of each alias, without aliases that point to none."""
        return {alias: version for alias in self.alias_names() if (version := self.current(alias)) is not None}

    def alias_names(self) -> list[str]:
        """Return the names of all aliases, including withdrawn ones."""
        folder = self.folder / ALIASES
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def current(self, alias: str) -> Version | None:
        """Return the version of an alias, or None. Raises DamagedFileError if its last change cannot be read."""
        folder = self.folder / ALIASES / alias
        for number in reversed(numbers_in(folder)):
            if (entry := read_entry(folder, number)) is not None:
                move = self.moves(alias, {number: entry})[0]
                return self.version(move.version) if move.version is not None else None
        return None

    def history(self, alias: str) -> list[Move]:
        """Return all changes of an alias, oldest first. Raises DamagedFileError."""
        return self.moves(alias, read_numbered(self.folder / ALIASES / alias))

    def moves(self, alias: str, entries: Entries) -> list[Move]:
        """Parse the changes of an alias. Raises DamagedFileError."""
        about, folder = {"model": self.name, "alias": alias}, self.folder / ALIASES / alias
        return [parse_entry(Move, folder, number, {**entry, **about, "number": number}) for number, entry in entries.items()]


def exported_directory(version: Version) -> Path | None:
    """Return the Hugging Face directory of a version, or None if its checkpoint has not been exported yet."""
    return version.directory if (version.directory / "config.json").is_file() else None


def registered_models(root: Path | None = None) -> list[RegisteredModel]:
    """Return all models of the registry under a root (default: all roots of runs)."""
    models = []
    for each in [root] if root else roots():
        folder = each / MODELS
        if folder.is_dir():
            models += [RegisteredModel(each, name) for name in sorted(list_afresh(folder)) if (folder / name / VERSIONS).is_dir()]
    return models


def find_version(ref: str, root: Path | None = None) -> Version | None:
    """Find a version by NAME@NUMBER, NAME@ALIAS, an alias that only one model has, or a model's name (its `production`).

    Returns None if `ref` does not refer to the registry. Raises ConfigError if it does, but there is no such version.
    """
    name, at, selector = ref.partition("@")
    if not NAME.fullmatch(name) or (at and not NAME.fullmatch(selector)):
        return None  # a path
    models = registered_models(root)
    if not at:
        return _by_alias(name, models) or next((_at(model, PRODUCTION) for model in models if model.name == name), None)
    for model in models:
        if model.name == name:
            return model.version(int(selector)) if selector.isdigit() else _at(model, selector)
    return None


def _at(model: RegisteredModel, alias: str) -> Version:
    version = model.current(alias)
    if version is None:
        aliases = ", ".join(f"{model.name}@{name}" for name in model.aliases()) or "none"
        raise ConfigError(
            f"{model.name}@{alias}: points to no version; aliases of {model.name}: {aliases}. "
            f"`ropewalk promote MODEL --to {alias} --name {model.name}` sets it"
        )
    return version


def _by_alias(alias: str, models: list[RegisteredModel]) -> Version | None:
    """Return the version of an alias that only one model has, or None. Raises ConfigError."""
    versions = {model.name: version for model in models if (version := model.current(alias)) is not None}
    if len(versions) > 1:
        names = " or ".join(f"{name}@{alias}" for name in versions)
        raise ConfigError(f"{alias!r}: {len(versions)} models have this alias; use {names}")
    if not versions and alias in (PRODUCTION, CANDIDATE) and models:
        raise ConfigError(f"{alias!r}: no model has this alias now; `ropewalk promote MODEL --to {alias}` sets it")
    return next(iter(versions.values()), None)
