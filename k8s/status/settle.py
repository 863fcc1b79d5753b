"""Records outcomes that only Kubernetes or the volume knows, and deletes Jobs that can never start.

Only the owner of a run does so; querying a run (`ropewalk.k8s.status.run_state`) changes nothing.
"""

import logging
import os
from collections.abc import Callable

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import state_from_files
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes
from ropewalk.k8s.names import job_name_of
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.status.run_state import ended_unseen, never_starts, run_state, unrecorded_outcome

log = logging.getLogger(__name__)


def settle_run(run: RunDir, observation: Observation, kube: Kubernetes, fetch: Callable[[RunDir], None] | None) -> BackendState:
    """Return the state of a run after recording its outcome if it has ended. Failures of that are logged.

    `fetch` updates this machine's copy of a run that is stored elsewhere. Runs whose directory belongs to another user are not
    changed.
    """
    if os.geteuid() not in {0, run.path.stat().st_uid}:
        return run_state(run, observation)
    if fetch is not None and ended_unseen(run, observation):
        try:
            fetch(run)
        except ApiAwayError as error:  # the outcome exists and will be readable later
            return state_from_files(run, str(error))
        except BackendError as error:
            log.warning("%s: cannot read its outcome: %s", run.id, error)
    useless = never_starts(run, observation)
    _record_outcome(run, observation)
    if useless:
        try:
            kube.delete("Job", job_name_of(run))
        except BackendError as error:
            log.warning("%s can never start, but its Job cannot be deleted: %s", run.id, error)
    return run_state(run, observation)


def _record_outcome(run: RunDir, observation: Observation) -> None:
    outcome = unrecorded_outcome(run, observation)
    if outcome is None:
        return
    try:
        run.write_outcome(run.attempts()[-1], outcome)
    except OSError as error:
        log.warning("%s ended as %s, which cannot be recorded: %s", run.id, outcome.state, error)
