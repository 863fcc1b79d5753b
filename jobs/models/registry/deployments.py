"""What became of a version where it was to be served, as the serving runs tell it."""

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
    """Write down what became of a version (NAME@NUMBER) in a serving run; what is known already is not repeated."""
    model, _, number = version.partition("@")
    if not number.isdigit():
        raise ConfigError(f"{version!r} is no version of the registry; one is called NAME@NUMBER")
    told = {"version": int(number), "alias": alias, "state": state, "cause": cause, "by": by}
    folder = root / MODELS / model / _FOLDER
    with suppress(FileExistsError):
        make_private(folder)

    def decide(entries: Any) -> dict[str, Any] | None:
        mine = [entry for entry in entries.values() if (entry["by"], entry["alias"]) == (by, alias)]
        known = mine and {key: mine[-1].get(key) for key in told} == told
        return None if known else {**told, "time": time.time()}

    append_numbered(folder, decide)


def rollouts(root: Path, model: str) -> list[dict[str, Any]]:
    """All that serving runs have told of a model's versions, the oldest first."""
    return list(read_numbered(root / MODELS / model / _FOLDER).values())
