"""Deployment states of versions, reported by serving runs."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import make_private
from ropewalk.cluster.run.numbered import Entries, append_numbered, parse_entry, read_numbered
from ropewalk.jobs.runs.models.model_versions import MODELS

State = Literal["loading", "probing", "canary", "serving", "refused"]
_FOLDER = "rollouts"  # ROOT/models/NAME/rollouts


class Deployment(BaseModel):
    """Report of a serving run about a version."""

    model_config = ConfigDict(frozen=True, extra="allow")  # keys of a later version of the program are kept

    version: int
    alias: str
    state: str
    cause: str = ""
    by: str
    time: float


def record_rollout(root: Path, version: str, alias: str, state: State, cause: str = "", *, by: str) -> None:
    """Record the state of a version (NAME@NUMBER) in a serving run, unless it is the recorded one."""
    model, _, number = version.partition("@")
    if not number.isdigit():
        raise ConfigError(f"{version!r} is not a version of the registry, NAME@NUMBER")
    report = Deployment(version=int(number), alias=alias, state=state, cause=cause, by=by, time=time.time())
    folder = root / MODELS / model / _FOLDER
    with suppress(FileExistsError):
        make_private(folder)

    def decide(entries: Entries) -> dict[str, Any] | None:
        mine = [entry for entry in _parse(folder, entries) if (entry.by, entry.alias) == (by, alias)]
        is_recorded = mine and (mine[-1].version, mine[-1].state, mine[-1].cause) == (report.version, state, cause)
        return None if is_recorded else report.model_dump()

    append_numbered(folder, decide)


def rollouts(root: Path, model: str) -> list[Deployment]:
    """Return all reports of serving runs about a model's versions, the oldest first. Raises DamagedFileError."""
    folder = root / MODELS / model / _FOLDER
    return _parse(folder, read_numbered(folder))


def _parse(folder: Path, entries: Entries) -> list[Deployment]:
    return [parse_entry(Deployment, folder, number, entry) for number, entry in entries.items()]
