"""Cancels runs, of which some were never submitted and others wait for a node."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ropewalk.cluster.backends.recovery import has_agents, record_missing_outcome
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes, NotFoundError
from ropewalk.k8s.names import job_name_of
from ropewalk.k8s.submission.submit import THREADS

log = logging.getLogger(__name__)

UNSUBMITTED_SECONDS = 900.0  # a run without attempts that is older than this was never submitted


def cancel_unsubmitted(runs: Sequence[RunDir]) -> list[RunDir]:
    """Cancel the runs that were never submitted and are not being submitted; return the others."""
    long_ago = time.time() - UNSUBMITTED_SECONDS
    others = []
    for run in runs:
        is_old = float(run.record.get("created") or math.inf) < long_ago and "parent" not in run.record
        if run.attempts() or not is_old:
            others.append(run)
            continue
        run.request_cancel()  # in case a submission is just starting
        run.begin_attempt()
        record_missing_outcome(run, RunState.CANCELLED, "never submitted")
    return others


def cancel_submitted(kube: Kubernetes, runs: Sequence[RunDir], *, shares_files: bool) -> None:
    """Ask the runs to save and stop, and delete their Jobs. `shares_files`: this machine sees the runs' volume."""
    for run in runs:
        run.request_cancel()

    def remove(run: RunDir) -> None:
        waiting = _is_waiting(kube, run, shares_files)
        try:
            # foreground: the Job stays visible until its pods have saved and exited
            kube.delete("Job", job_name_of(run), propagation="Foreground")
        except ApiAwayError as error:
            if not shares_files:
                raise
            log.warning("%s; %s finds the request in its directory as soon as it runs", error, run.id)
            return
        if waiting and run.attempts() and run.last_outcome() is None and not has_agents(run):
            record_missing_outcome(run, RunState.CANCELLED, "cancelled while waiting")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(remove, runs))


def _is_waiting(kube: Kubernetes, run: RunDir, shares_files: bool) -> bool:
    """Return True if no pod of the run has ever started, by its files or, if they are not visible here, by its Job."""
    if shares_files:
        return not has_agents(run)
    try:
        status = kube.get("Job", job_name_of(run)).get("status") or {}
    except NotFoundError:
        return False
    return not status.get("active") and not status.get("failed")
