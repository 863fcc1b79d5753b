"""Put a model into the registry: the same weights of the same run are one version, whoever registers them at the same time."""

import getpass
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.files import make_private
from ropewalk.cluster.run.numbered import Entries, append_numbered
from ropewalk.jobs.models.registry.lineage import lineage_of
from ropewalk.jobs.models.registry.weights import hash_of_checkpoint, hash_of_directory, keep_checkpoint, newest_step
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.runs.models.model_versions import (
    ALIASES,
    CANDIDATE,
    MODELS,
    NAME,
    PRODUCTION,
    VERSIONS,
    RegisteredModel,
    Version,
    find_version,
    registered_models,
)

DEFAULT_NAME = "main"
_IS = ("run", "step", "path", "weights")  # what makes two versions the same


def register(ref: str, name: str | None = None, root: Path | None = None, *, by: str | None = None) -> Version:
    """The version that a user's words name: of the registry, or a run (RUN, RUN@STEP) or directory that becomes one.

    `name` is the model's; unset: the only one that there is, else `main`. Raises ConfigError, CheckpointError.
    """
    known = find_version(ref, root)
    if known is not None:
        if name is not None and name != known.model:
            raise ConfigError(f"{ref} is {known.id}, a version of {known.model}, not of {name}; leave --name out")
        return known
    place, step = find_checkpoint(ref, root)
    if isinstance(place, RunDir):
        root = root or place.path.parent
        step = step if step is not None else newest_step(place)
        what: dict[str, Any] = {"run": place.id, "step": step, "weights": hash_of_checkpoint(place, step)}
    else:
        root = root or runs_root()
        what = {"path": str(place), "weights": hash_of_directory(place)}
    model = _model(name or _only_name(root), root)
    entry = {**what, "created": time.time(), "by": by or who(), "lineage": lineage_of(place, step, root)}

    def decide(entries: Entries) -> Mapping[str, Any] | None:
        return None if _equal(entries, what) else entry

    append_numbered(model.folder / VERSIONS, decide)
    found = next(version for version in reversed(model.versions()) if _same(vars(version), what))
    if isinstance(place, RunDir):
        assert step is not None
        keep_checkpoint(place, step, found.id)
    return found


def who() -> str:
    """The user and machine that this process works for."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a pod's user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _only_name(root: Path) -> str:
    names = [model.name for model in registered_models(root)]
    if len(names) > 1:
        raise ConfigError(f"of which model is it a version? --name says so: {', '.join(names)}, or a new one")
    return names[0] if names else DEFAULT_NAME


def _model(name: str, root: Path) -> RegisteredModel:
    """A model of the registry, with its folders. Raises ConfigError for a name that no file can have."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"the model's name {name!r} may hold letters, digits, '.', '-' and '_' only")
    if name in (PRODUCTION, CANDIDATE):
        raise ConfigError(f"the model's name {name!r} is that of an alias; choose another")
    model = RegisteredModel(root, name)
    aliases = model.folder / ALIASES
    # those that are there before anybody looks are seen at once on NFS
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root / MODELS, model.folder, aliases, aliases / PRODUCTION, aliases / CANDIDATE, model.folder / VERSIONS):
        with suppress(FileExistsError):
            make_private(folder)
    return model


def _equal(entries: Entries, what: Mapping[str, Any]) -> bool:
    return any(_same(entry, what) for entry in entries.values())


def _same(entry: Mapping[str, Any], what: Mapping[str, Any]) -> bool:
    return all(entry.get(key) == what.get(key) for key in _IS)
