"""Make runs of trials save and leave, and wait until they have."""

import logging
import time

from cluster.backends.profiles import load_backend
from cluster.config import Resources
from cluster.errors import BackendError, RopewalkError
from cluster.run.directory import RunDir
from jobs.runs.follow import Watch
from jobs.runs.status import final_outcome
from jobs.sweep.context import Scene
from jobs.sweep.launcher import ask

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LEAVE_SECONDS = 60.0  # besides the grace that a run has to save


def end_run(scene: Scene, run: RunDir) -> None:
    """Make a run save and leave, and wait until it has."""
    if final_outcome(run) is None:
        if not run.attempts():  # written down, never started
            run.request_cancel()
            return
        run.request_cancel()
        try:
            if not scene.config.allocation:
                ask(scene.launcher, "cancel", run)
        except BackendError as error:
            log.warning("%s: %s", run.id, error)
    await_end(run)


def await_end(run: RunDir) -> bool:
    """Wait until a run that was told to end is over and its processes have left; False if that takes too long."""
    grace = Resources.model_validate(run.record["resources"]).grace_seconds
    watch, deadline = Watch(run), time.monotonic() + grace + LEAVE_SECONDS
    while not watch.over():
        if time.monotonic() > deadline:
            log.error("%s was told to end and has not, in %.0f s", run.id, grace + LEAVE_SECONDS)
            return False
        time.sleep(POLL_SECONDS)
    while time.monotonic() < deadline and _supervised(run):
        time.sleep(POLL_SECONDS)
    return True


def _supervised(run: RunDir) -> bool:
    """The outcome is written before the local supervisor has tidied up."""
    try:
        return load_backend(str(run.record["cluster"])).states([run])[run.id].word == "supervised"
    except RopewalkError:
        return False
