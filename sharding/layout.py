"""Where checkpoints lie, which are complete, and which must stay because another run needs them."""

import json
import re
from collections.abc import Iterable

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.config import CheckpointConfig

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest.json"  # the steps to look at; written before a manifest is, and before a checkpoint is removed
_PIN = "pinned-by-"


def directory_of(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def steps_in(place: StoragePath) -> list[int]:
    """Steps that have a directory, ascending; complete or not. A client of NFS may see them as they were a minute ago."""
    return sorted(int(m[1]) for m in (re.fullmatch(r"step-(\d{8,})", name) for name in place.names()) if m)


def newest_steps(place: StoragePath) -> list[int]:
    """Steps that may have a checkpoint, ascending, for whoever goes on from the newest: none that was committed is missing,
    whichever machine has committed it.
    """
    place.make()
    told = told_steps(place)
    for step in told:
        place.make(directory_of(step))
        place.exists_afresh(f"{directory_of(step)}/{MANIFEST_NAME}")
    return sorted(told.union(steps_in(place)))


def told_steps(place: StoragePath) -> set[int]:
    """The steps that the pointer names; it is opened by a name that is there, and so as new as the moment."""
    try:
        return {int(step) for step in json.loads(place.read_afresh(LATEST_NAME) or b"{}").get("steps", ())}
    except (ValueError, AttributeError, TypeError):  # a power cut has left half of it: the listing counts
        return set()


def tell_steps(place: StoragePath, steps: Iterable[int]) -> None:
    """Write the pointer: from now on these steps are looked at."""
    place.write(LATEST_NAME, (json.dumps({"steps": sorted(steps)}) + "\n").encode())


def complete_steps(place: StoragePath) -> list[int]:
    """Steps whose checkpoint was committed, ascending; whether their bytes are intact is another question."""
    steps = sorted(told_steps(place).union(steps_in(place)))
    return [step for step in steps if place.exists(f"{directory_of(step)}/{MANIFEST_NAME}")]


def place_of(run: RunDir, config: CheckpointConfig) -> StoragePath:
    """Where a run's checkpoints lie: its own directory, or below `checkpoint.path` under the run's id."""
    if config.path is None:
        return StoragePath(run.checkpoints, config.patience_seconds)
    return StoragePath(f"{config.path.rstrip('/')}/{run.id}", config.patience_seconds)


def pin(place: StoragePath, step: int, name: str) -> None:
    """Keep a checkpoint on behalf of the run `name`, however many newer ones follow. Pin the newest ones only.

    A checkpoint that is being pruned at this moment may be gone all the same.
    """
    place.write(f"{directory_of(step)}/{_PIN}{name}", b"")


def unpin(place: StoragePath, step: int, name: str) -> None:
    """Remove the pin of the run `name`: it no longer needs this checkpoint."""
    place.remove(f"{directory_of(step)}/{_PIN}{name}")


def is_pinned(place: StoragePath, step: int) -> bool:
    """Whether another run has pinned this checkpoint."""
    return any(name.startswith(_PIN) for name in place.names(directory_of(step)))
