"""Checkpoints that one trial hands over to another: which one, and that it stays as long as a trial may need it.

A client of NFS may believe an old listing, or that a name is missing, for a minute. So the pointer of the checkpoints is opened
by its name: it tells of a step before its manifest is written. And a step's directory is listed right after a pin was written
into it: a directory that this client has changed itself is listed anew.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.orchestration.sweep.records import read_records
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.layout import MANIFEST_NAME, directory_of, pin, place_of, told_steps, unpin

log = logging.getLogger(__name__)

COMMIT_SECONDS = 120.0  # from a step's metrics to its checkpoint's manifest
POLL_SECONDS = 0.1


def checkpoint_of(sweep: RunDir, run: RunDir, step: int, over: Callable[[], bool]) -> dict[str, Any]:
    """A pinned reference to the checkpoint of `step`, as soon as it is complete; the nearest other one if it never will be.

    Empty if the run has none. `over` tells whether the run has ended, and saves no more.
    """
    config = _config(run)
    place, wanted = place_of(run, config), step - step % config.every_steps
    deadline = time.monotonic() + COMMIT_SECONDS
    while True:
        last_look = over() or time.monotonic() > deadline
        place.make()  # else this client might believe for a minute that there is no such directory
        told = told_steps(place)
        if wanted in told and _pinned(place, wanted, sweep):
            return _reference(sweep, run, place, wanted)
        if any(one > wanted for one in told) or last_look:
            break
        time.sleep(POLL_SECONDS)
    for one in sorted(told - {wanted}, key=lambda one: abs(one - wanted)):
        if _pinned(place, one, sweep):
            log.warning("%s: there is no checkpoint of step %d; taking that of step %d", run.id, wanted, one)
            return _reference(sweep, run, place, one)
    return {}


def _pinned(place: StoragePath, step: int, sweep: RunDir) -> bool:
    """Pin a checkpoint that the pointer tells of; returns whether it is complete."""
    pin(place, step, sweep.id)
    return MANIFEST_NAME in place.names(directory_of(step))


def _reference(sweep: RunDir, run: RunDir, place: StoragePath, step: int) -> dict[str, Any]:
    """Name a pinned checkpoint, and release those of the run that no trial has made use of: only the newest is handed over."""
    used = {entry["step"] for record in read_records(sweep) for entry in record.lineage if entry["from_run"] == run.id}
    for other in told_steps(place) - used - {step}:
        unpin(place, other, sweep.id)
    return {"run": run.id, "step": step}


def release_all(sweep: RunDir, run: RunDir) -> None:
    """Release the run's checkpoints once the sweep is over."""
    place = place_of(run, _config(run))
    for step in told_steps(place):
        unpin(place, step, sweep.id)


def _config(run: RunDir) -> CheckpointConfig:
    return CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {})
