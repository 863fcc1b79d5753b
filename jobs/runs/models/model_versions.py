"""Read the registry of models: the versions of a model, and the aliases, such as `production`, that point to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.numbered import Entries, read_numbered
from ropewalk.jobs.runs.show.status import roots

MODELS, VERSIONS, ALIASES = "models", "versions", "aliases"  # folders: ROOT/models/NAME/versions, ROOT/models/NAME/aliases/ALIAS
DIRECTORIES = "directories"  # beside them: checkpoints as Hugging Face directories, by the number of their version
PRODUCTION, CANDIDATE = "production", "candidate"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a model: a run's checkpoint of a step, or a Hugging Face directory. It never changes."""

    model: str
    number: int
    root: Path  # of the runs, as this machine sees it
    run: str | None = None  # the id of a run under the root
    step: int | None = None
    path: str | None = None  # of a directory
    weights: str  # a hash of them
    created: float
    by: str
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """NAME@NUMBER."""
        return f"{self.model}@{self.number}"

    @property
    def ref(self) -> str:
        """What a job calls it by: RUN@STEP, or the directory."""
        return self.path if self.path is not None else f"{self.run}@{self.step}"

    @property
    def directory(self) -> Path:
        """The Hugging Face directory of the version; a checkpoint's exists only after it has been exported."""
        if self.path is not None:
            return Path(self.path)
        return self.root / MODELS / self.model / DIRECTORIES / f"{self.number:06d}"

    def plain(self) -> dict[str, Any]:
        """The version as JSON has it."""
        own = {key: value for key, value in vars(self).items() if key not in ("root", "model", "number")}
        return {"version": self.id, "ref": self.ref, **own}


@dataclass(frozen=True, kw_only=True)
class Move:
    """An alias was made to point to a version, or to none."""

    model: str
    alias: str
    number: int
    version: int | None
    kind: str  # promote | rollback | withdraw
    by: str
    time: float
    gates: tuple[Mapping[str, Any], ...] = ()  # the evidence: each gate's run, conditions and figures
    forced: str | None = None  # why it was done without a passed gate
    key: str | None = None  # names what was done, so that it is done once
    reason: str | None = None

    @property
    def version_id(self) -> str | None:
        """NAME@NUMBER of what the alias points to since then; None: to nothing."""
        return f"{self.model}@{self.version}" if self.version is not None else None

    def plain(self) -> dict[str, Any]:
        """The move as JSON has it."""
        own = {key: value for key, value in vars(self).items() if key not in ("model", "version", "gates")}
        return {**own, "version": self.version_id, "gates": list(self.gates)}


class RegisteredModel:
    """One model of the registry, as its files are now."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name

    @property
    def folder(self) -> Path:
        """ROOT/models/NAME."""
        return self.root / MODELS / self.name

    def versions(self) -> list[Version]:
        """Every version, the oldest first."""
        return [self.version_of(number, entry) for number, entry in read_numbered(self.folder / VERSIONS).items()]

    def version(self, number: int) -> Version:
        """A version by its number. Raises ConfigError."""
        entries = read_numbered(self.folder / VERSIONS)
        if number not in entries:
            known = ", ".join(map(str, entries)) or "none"
            raise ConfigError(f"{self.name}@{number}: there is no such version; versions of {self.name}: {known}")
        return self.version_of(number, entries[number])

    def version_of(self, number: int, entry: Mapping[str, Any]) -> Version:
        """A version as its file has it."""
        return Version(model=self.name, number=number, root=self.root, **entry)

    def aliases(self) -> dict[str, Version]:
        """What each alias points to now; an alias that points to nothing is left out."""
        return {alias: found for alias in self.alias_names() if (found := self.current(alias)) is not None}

    def alias_names(self) -> list[str]:
        """The aliases that there have ever been."""
        folder = self.folder / ALIASES
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def current(self, alias: str) -> Version | None:
        """The version that an alias points to; None: to none."""
        moves = self.history(alias)
        return self.version(moves[-1].version) if moves and moves[-1].version is not None else None

    def history(self, alias: str) -> list[Move]:
        """All that was done with an alias, the oldest first."""
        return moves_of(self.name, alias, read_numbered(self.folder / ALIASES / alias))


def exported_directory(version: Version) -> Path | None:
    """Return the Hugging Face directory of a version, or None if its checkpoint has not been exported yet."""
    return version.directory if (version.directory / "config.json").is_file() else None


def moves_of(model: str, alias: str, entries: Entries) -> list[Move]:
    """The moves of an alias as its files have them."""
    return [
        Move(model=model, alias=alias, number=number, **{**entry, "gates": tuple(entry.get("gates") or ())})
        for number, entry in entries.items()
    ]


def registered_models(root: Path | None = None) -> list[RegisteredModel]:
    """Every model of the registry under a root; unset: under all roots of runs."""
    found = []
    for place in [root] if root else roots():
        folder = place / MODELS
        if folder.is_dir():
            found += [RegisteredModel(place, name) for name in sorted(list_afresh(folder)) if (folder / name / VERSIONS).is_dir()]
    return found


def find_version(ref: str, root: Path | None = None) -> Version | None:
    """The version that a user names: NAME@NUMBER, NAME@ALIAS, an alias that one model has, or a model (its `production`).

    None where `ref` names nothing of the registry. Raises ConfigError where it does, and there is no such version.
    """
    name, at, word = ref.partition("@")
    if not NAME.fullmatch(name) or (at and not NAME.fullmatch(word)):
        return None  # a path
    models = registered_models(root)
    if not at:
        return _by_alias(name, models) or next((_at(model, PRODUCTION) for model in models if model.name == name), None)
    for model in models:
        if model.name == name:
            return model.version(int(word)) if word.isdigit() else _at(model, word)
    return None


def _at(model: RegisteredModel, alias: str) -> Version:
    found = model.current(alias)
    if found is None:
        known = ", ".join(f"{model.name}@{name}" for name in model.aliases()) or "none"
        raise ConfigError(
            f"{model.name}@{alias}: points to no version; aliases of {model.name}: {known}. "
            f"`ropewalk promote MODEL --to {alias} --name {model.name}` sets it"
        )
    return found


def _by_alias(alias: str, models: list[RegisteredModel]) -> Version | None:
    """The version of an alias that one model alone has."""
    found = {model.name: version for model in models if (version := model.current(alias)) is not None}
    if len(found) > 1:
        names = " or ".join(f"{name}@{alias}" for name in found)
        raise ConfigError(f"{alias!r}: {len(found)} models have this alias; say {names}")
    if not found and alias in (PRODUCTION, CANDIDATE) and models:
        raise ConfigError(f"{alias!r}: no model has this alias now; `ropewalk promote MODEL --to {alias}` sets it")
    return next(iter(found.values()), None)
