"""Makes certain what is certain: writes down ends that only Kubernetes or the volume knows, and deletes Jobs that never start.

Only whoever owns a run does so; to look at a run (`ropewalk.k8s.status.run_state`) changes nothing.
"""

import logging
import os
from collections.abc import Callable

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import last_known
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes
from ropewalk.k8s.names import job_name_of
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.status.run_state import ended_unseen, never_starts, run_state, unwritten_end

log = logging.getLogger(__name__)


def settle_run(run: RunDir, seen: Observation, kube: Kubernetes, fetch: Callable[[RunDir], None] | None) -> BackendState:
    """The state of a run, once what has become certain of it is written down; what fails of that is logged, in a line.

    `fetch` brings this machine's copy of the run up to date, where the run itself lies elsewhere. Nothing is changed of a run
    whose directory belongs to another user.
    """
    if os.geteuid() not in {0, run.path.stat().st_uid}:
        return run_state(run, seen)
    if fetch is not None and ended_unseen(run, seen):
        try:
            fetch(run)
        except ApiAwayError as error:  # how it ended is there to be read, and must not be guessed
            return last_known(run, str(error))
        except BackendError as error:
            log.warning("%s: how it ended cannot be read: %s", run.id, error)
    useless = never_starts(run, seen)
    _write_end(run, seen)
    if useless:
        try:
            kube.delete("Job", job_name_of(run))
        except BackendError as error:
            log.warning("%s can never start, and its Job stays: %s", run.id, error)
    return run_state(run, seen)


def _write_end(run: RunDir, seen: Observation) -> None:
    outcome = unwritten_end(run, seen)
    if outcome is None:
        return
    try:
        run.write_outcome(run.attempts()[-1], outcome)
    except OSError as error:
        log.warning("%s ended as %s, which cannot be written down: %s", run.id, outcome.state, error)
