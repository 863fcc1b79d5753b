"""Removal of registered versions: their exported directories are deleted and their checkpoints unpinned; their records stay."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import json_text, make_private
from ropewalk.jobs.models.registry.promote import standing
from ropewalk.jobs.models.registry.register import who
from ropewalk.jobs.models.registry.weights import delete_export, unpin_checkpoint
from ropewalk.jobs.runs.models.model_versions import REMOVED, RegisteredModel, Version, find_version
from ropewalk.jobs.runs.show.status import final_outcome, settle
from ropewalk.jobs.runs.show.view import view_of


def remove(ref: str, root: Path | None = None, *, by: str | None = None, reason: str | None = None) -> Version:
    """Remove the version NAME@NUMBER, or finish an interrupted removal of it, and return its record.

    A directory that was registered by its path is not deleted. Raises ConfigError if an alias points to the version or a run
    serves it.
    """
    version = find_version(ref, root) if ref.rpartition("@")[2].isdigit() else None
    if version is None:
        raise ConfigError(f"{ref!r} is no version of the registry; name one as NAME@NUMBER, see `ropewalk models`")
    model = RegisteredModel(version.root, version.model)
    _refuse_needed(model, version)
    for run in runs_serving(version):
        raise ConfigError(f"{version.id}: {run.id} serves it; promote another version, or cancel the run")
    folder = model.folder / REMOVED
    with suppress(FileExistsError):
        make_private(folder)
    record = folder / f"{version.number:06d}.json"
    create_whole(record, json_text({"by": by or who(), "time": time.time(), "reason": reason}))
    try:
        _refuse_needed(model, version)  # an alias may have been moved meanwhile; from now on none can be
    except ConfigError:
        record.unlink()
        raise
    if version.run is not None:
        unpin_checkpoint(RunDir(version.root / version.run), int(version.step or 0), version.id)
        delete_export(version.directory)
    return model.version(version.number)


def unneeded(model: RegisteredModel, keep: int) -> list[Version]:
    """Return all versions but the newest `keep`, those that aliases, a rollback or serving runs need, and removed ones."""
    needed = {number for alias in model.alias_names() for number in standing(model.history(alias))[-2:]}
    old = [version for version in model.versions() if version.removed is None][:-keep]
    return [version for version in old if version.number not in needed and not any(runs_serving(version))]


def prune(model: RegisteredModel, keep: int, *, by: str | None = None) -> list[Version]:
    """Remove the versions that are `unneeded`, and return them."""
    reason = f"only the newest {keep} versions are kept"
    return [remove(version.id, model.root, by=by, reason=reason) for version in unneeded(model, keep)]


def runs_serving(version: Version) -> Iterator[RunDir]:
    """Yield the runs that have loaded a version, or are loading it."""
    for run in RunDir.all(version.root):
        if final_outcome(run) is not None or not (view := view_of(run)).serves:
            continue
        states = {row["version"]: row["state"] for row in view.plain()["versions"]}
        if any(states.get(name, "refused") != "refused" for name in (version.id, version.ref)) and not settle(run).state.final:
            yield run


def _refuse_needed(model: RegisteredModel, version: Version) -> None:
    aliases = [alias for alias, target in model.aliases().items() if target.number == version.number]
    if aliases:
        names = ", ".join(f"{model.name}@{alias}" for alias in aliases)
        raise ConfigError(f"{version.id}: {names} points to it; promote another version or roll back first")
