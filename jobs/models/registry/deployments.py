"""Deployment states of versions, reported by serving runs."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import make_private
from ropewalk.cluster.run.numbered import append_numbered, read_numbered
from ropewalk.jobs.runs.models.model_versions import MODELS

State = Literal["loading", "probing", "canary", "serving", "refused"]
_FOLDER = "rollouts"  # ROOT/models/NAME/rollouts


def record_rollout(root: Path, version: str, alias: str, state: State, cause: str = "", *, by: str) -> None:
    """Record the state of a version (NAME@NUMBER) in a serving run, unless it is the recorded one."""
    model, _, number = version.partition("@")
    if not number.isdigit():
        raise ConfigError(f"{version!r} is not a version of the registry, NAME@NUMBER")
    report = {"version": int(number), "alias": alias, "state": state, "cause": cause, "by": by}
    folder = root / MODELS / model / _FOLDER
    with suppress(FileExistsError):
        make_private(folder)

    def decide(entries: Any) -> dict[str, Any] | None:
        mine = [entry for entry in entries.values() if (entry["by"], entry["alias"]) == (by, alias)]
        is_recorded = mine and {key: mine[-1].get(key) for key in report} == report
        return None if is_recorded else {**report, "time": time.time()}

    append_numbered(folder, decide)


def rollouts(root: Path, model: str) -> list[dict[str, Any]]:
    """Return all reports of serving runs about a model's versions, the oldest first."""
    return list(read_numbered(root / MODELS / model / _FOLDER).values())
