"""Checkpoints that one trial hands over to another: which one, and that it stays as long as somebody may need it."""

import logging
import time
from collections.abc import Callable
from typing import Any

from cluster.run.directory import RunDir
from cluster.storage import StoragePath
from jobs.sweep.records import read_records
from sharding.config import CheckpointConfig
from sharding.layout import complete_steps, is_pinned, pin, place_of, unpin

log = logging.getLogger(__name__)

COMMIT_SECONDS = 120.0  # from a step's metrics to its checkpoint's manifest
POLL_SECONDS = 0.1


def checkpoint_of(sweep: RunDir, run: RunDir, step: int, over: Callable[[], bool]) -> dict[str, Any]:
    """A pinned reference to the checkpoint of `step`, as soon as it is complete; an older one if it never will be.

    Empty if the run has none. `over` tells that the run saves no more.
    """
    config = CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {})
    place, wanted = place_of(run, config), step - step % config.every_steps
    deadline = time.monotonic() + COMMIT_SECONDS
    while True:
        last_look = over() or time.monotonic() > deadline
        steps = complete_steps(place)
        if wanted in steps:
            return _pinned(sweep, run, place, wanted)
        if any(one > wanted for one in steps) or last_look:
            break
        time.sleep(POLL_SECONDS)
    if not steps:
        return {}
    log.warning("%s: the checkpoint of step %d is not there, of %s it is", run.id, wanted, steps)
    return _pinned(sweep, run, place, min(steps, key=lambda one: abs(one - wanted)))


def _pinned(sweep: RunDir, run: RunDir, place: StoragePath, step: int) -> dict[str, Any]:
    pin(place, step, sweep.id)
    _release(sweep, run, place, but=step)
    return {"run": run.id, "step": step}


def _release(sweep: RunDir, run: RunDir, place: StoragePath, but: int) -> None:
    """Pins of this run that no trial has made use of: only the newest is ever handed over."""
    used = {entry["step"] for record in read_records(sweep) for entry in record.lineage if entry["from_run"] == run.id}
    for step in complete_steps(place):
        if step != but and step not in used and is_pinned(place, step):
            unpin(place, step, sweep.id)


def release_all(sweep: RunDir, run: RunDir) -> None:
    """The sweep is over: nobody needs the run's checkpoints but itself."""
    config = CheckpointConfig.model_validate(run.record["config"].get("checkpoint") or {})
    place = place_of(run, config)
    for step in complete_steps(place):
        if is_pinned(place, step):
            unpin(place, step, sweep.id)
