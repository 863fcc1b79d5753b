"""Register a model: the same weights of the same run are one version, however many processes register them."""

import getpass
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.files import make_private
from ropewalk.cluster.run.numbered import Entries, append_numbered
from ropewalk.jobs.models.registry.lineage import lineage_of
from ropewalk.jobs.models.registry.weights import keep_checkpoint, newest_step
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
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_model

DEFAULT_NAME = "main"
Check = Callable[[RunDir | Path, int | None, str, Path], None]  # location, step, hash of the weights, root; raises to refuse
_IS = ("run", "step", "path", "weights")  # keys that identify a version


def register(
    ref: str, name: str | None = None, root: Path | None = None, *, by: str | None = None, check: Check | None = None
) -> Version:
    """Return the version of a reference: of the registry, or a run (RUN, RUN@STEP) or directory that becomes one.

    `name` is the model's; unset: the only model, or else `main`. `check` is called before a new version is written.
    Raises ConfigError, CheckpointError.
    """
    existing = find_version(ref, root)
    if existing is not None:
        if name is not None and name != existing.model:
            raise ConfigError(f"{ref} is {existing.id}, a version of {existing.model}, not of {name}; leave --name out")
        return existing
    location, step = find_checkpoint(ref, root)
    if isinstance(location, RunDir):
        root = root or location.path.parent
        step = step if step is not None else newest_step(location)
        what: dict[str, Any] = {"run": location.id, "step": step}
    else:
        root = root or runs_root()
        what = {"path": str(location)}
    what["weights"] = hash_of_model(location, step)
    if check is not None:
        check(location, step, what["weights"], root)
    model = _model(name or _only_name(root), root)
    entry = {**what, "created": time.time(), "by": by or who(), "lineage": lineage_of(location, step, root)}

    def decide(entries: Entries) -> Mapping[str, Any] | None:
        existing = [version for version in model.versions() if version.removed is None]
        return None if any(_same(version.model_dump(), what) for version in existing) else entry

    append_numbered(model.folder / VERSIONS, decide)
    version = next(entry for entry in reversed(model.versions()) if _same(entry.model_dump(), what))
    if isinstance(location, RunDir):
        assert step is not None
        keep_checkpoint(location, step, version.id)
    return version


def who() -> str:
    """Return the user and machine of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a pod
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _only_name(root: Path) -> str:
    names = [model.name for model in registered_models(root)]
    if len(names) > 1:
        raise ConfigError(f"several models exist; choose one with --name: {', '.join(names)}, or a new name")
    return names[0] if names else DEFAULT_NAME


def _model(name: str, root: Path) -> RegisteredModel:
    """Return a model of the registry with its folders. Raises ConfigError for an invalid name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"the model's name {name!r} must consist of letters, digits, '.', '-' and '_'")
    if name in (PRODUCTION, CANDIDATE):
        raise ConfigError(f"the model's name {name!r} is reserved for an alias; choose another")
    model = RegisteredModel(root, name)
    aliases = model.folder / ALIASES
    # create all folders early: NFS clients cache lookups of missing ones
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root / MODELS, model.folder, aliases, aliases / PRODUCTION, aliases / CANDIDATE, model.folder / VERSIONS):
        with suppress(FileExistsError):
            make_private(folder)
    return model


def _same(entry: Mapping[str, Any], what: Mapping[str, Any]) -> bool:
    return all(entry.get(key) == what.get(key) for key in _IS)
