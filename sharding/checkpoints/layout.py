"""Files of a run's checkpoints: their location, which are complete, and pins of other runs that need them."""

import json
import re
from collections.abc import Iterable

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.config import CheckpointConfig

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest.json"  # list of steps; written before a manifest is, and before a checkpoint is removed
_PIN = "pinned-by-"


def directory_of(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def steps_in(root: StoragePath) -> list[int]:
    """Return steps that have a directory, ascending; complete or not. On NFS the listing may be a minute old."""
    return sorted(int(m[1]) for m in (re.fullmatch(r"step-(\d{8,})", name) for name in root.names()) if m)


def newest_steps(root: StoragePath) -> list[int]:
    """Return steps that may have a checkpoint, ascending, including those that another machine committed just now."""
    root.make()
    listed = listed_steps(root)
    for step in listed:
        root.make(directory_of(step))
        root.exists_afresh(f"{directory_of(step)}/{MANIFEST_NAME}")
    return sorted(listed.union(steps_in(root)))


def listed_steps(root: StoragePath) -> set[int]:
    """Read the list of steps. The file is re-opened by name, so that stale directory caches do not matter."""
    try:
        return {int(step) for step in json.loads(root.read_afresh(LATEST_NAME) or b"{}").get("steps", ())}
    except (ValueError, AttributeError, TypeError):  # truncated by a power cut: rely on the directory listing
        return set()


def write_step_list(root: StoragePath, steps: Iterable[int]) -> None:
    """Write the list of steps."""
    root.write(LATEST_NAME, (json.dumps({"steps": sorted(steps)}) + "\n").encode())


def complete_steps(root: StoragePath) -> list[int]:
    """Return steps whose checkpoint was committed, ascending. Their files are not verified."""
    steps = sorted(listed_steps(root).union(steps_in(root)))
    return [step for step in steps if root.exists(f"{directory_of(step)}/{MANIFEST_NAME}")]


def folder_of(run: RunDir, config: CheckpointConfig) -> StoragePath:
    """Return the directory of a run's checkpoints: inside the run, or below `checkpoint.path` under the run's id."""
    if config.path is None:
        return StoragePath(run.checkpoints, config.patience_seconds)
    return StoragePath(f"{config.path.rstrip('/')}/{run.id}", config.patience_seconds)


def pin(root: StoragePath, step: int, name: str) -> None:
    """Protect a checkpoint from pruning on behalf of the run `name`. Pin only the newest ones.

    A checkpoint that is being pruned at this moment may disappear all the same.
    """
    root.write(f"{directory_of(step)}/{_PIN}{name}", b"")


def unpin(root: StoragePath, step: int, name: str) -> None:
    """Remove the pin of the run `name`."""
    root.remove(f"{directory_of(step)}/{_PIN}{name}")


def is_pinned(root: StoragePath, step: int) -> bool:
    """Return True if another run has pinned this checkpoint."""
    return bool(pins(root, step))


def pins(root: StoragePath, step: int) -> list[str]:
    """Return the names of the runs that have pinned this checkpoint."""
    return [name.removeprefix(_PIN) for name in root.names(directory_of(step)) if name.startswith(_PIN)]
