"""References to checkpoints that one trial continues from another, and pins that protect them from pruning.

An NFS client may use a stale directory listing, or miss a new name, for a minute. Therefore the checkpoints' pointer file is
opened by name (it lists a step before the step's manifest is written), and a step's directory is listed right after writing a
pin into it, because a client lists a directory again after changing it.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.orchestration.sweep.records import read_records
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME, directory_of, folder_of, listed_steps, pin, unpin
from ropewalk.sharding.config import CheckpointConfig

log = logging.getLogger(__name__)

COMMIT_SECONDS = 120.0  # from a step's metrics to its checkpoint's manifest
POLL_SECONDS = 0.1


def checkpoint_of(sweep: RunDir, run: RunDir, step: int, over: Callable[[], bool]) -> dict[str, Any]:
    """Wait for the checkpoint of `step`, pin it, and return a reference; fall back to the nearest complete checkpoint.

    Empty if the run has none. `over` returns True once the run has ended and saves no more.
    """
    config = _config(run)
    folder, wanted = folder_of(run, config), step - step % config.every_steps
    deadline = time.monotonic() + COMMIT_SECONDS
    while True:
        last_look = over() or time.monotonic() > deadline
        folder.make()  # otherwise an NFS client may not see the directory for a minute
        steps = listed_steps(folder)
        if wanted in steps and _pin_if_complete(folder, wanted, sweep):
            return _reference(sweep, run, folder, wanted)
        if any(other > wanted for other in steps) or last_look:
            break
        time.sleep(POLL_SECONDS)
    for other in sorted(steps - {wanted}, key=lambda other: abs(other - wanted)):
        if _pin_if_complete(folder, other, sweep):
            log.warning("%s: no checkpoint of step %d; using that of step %d", run.id, wanted, other)
            return _reference(sweep, run, folder, other)
    return {}


def _pin_if_complete(folder: StoragePath, step: int, sweep: RunDir) -> bool:
    """Pin a listed checkpoint and return True if it is complete."""
    pin(folder, step, sweep.id)
    return MANIFEST_NAME in folder.names(directory_of(step))


def _reference(sweep: RunDir, run: RunDir, folder: StoragePath, step: int) -> dict[str, Any]:
    """Return a reference to a pinned checkpoint, and unpin the run's others that no trial continued from."""
    used = {entry["step"] for record in read_records(sweep) for entry in record.lineage if entry["from_run"] == run.id}
    for other in listed_steps(folder) - used - {step}:
        unpin(folder, other, sweep.id)
    return {"run": run.id, "step": step}


def release_all(sweep: RunDir, run: RunDir) -> None:
    """Unpin all checkpoints of the run after the sweep."""
    folder = folder_of(run, _config(run))
    for step in listed_steps(folder):
        unpin(folder, step, sweep.id)


def _config(run: RunDir) -> CheckpointConfig:
    return CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {})
