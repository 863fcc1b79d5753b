"""Starts held Jobs: once their dependencies are met, and a limited number at a time. Runs in its own pod.

Usage: python -m ropewalk.k8s.submission.release_controller RUN_DIR ATTEMPT
The run is the first one of the submission; its attempt contains gate.json, which lists the held runs and their conditions.
The controller keeps no state: run directories show which runs are over, and Jobs show which were started. The pod can be killed
at any time.
"""

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.backends.recovery import record_missing_outcome
from ropewalk.cluster.backends.submission import (
    PATIENCE_SECONDS,
    Dependency,
    broken_dependencies,
    dependencies_beside,
    is_over,
    unstarted_outcome,
)
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.spec import Outcome
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.names import OUTCOME_ANNOTATION, QUEUE_LABEL, name_of
from ropewalk.k8s.profile import K8sProfile

log = logging.getLogger(__name__)

HELD_FILE = "gate.json"
POLL_SECONDS = 1.0  # between two checks of the runs' files
POLLS_PER_JOB_QUERY = 10  # every tenth check also queries the Jobs of started runs
SUBMISSION_POLLS = round(2 * PATIENCE_SECONDS / POLL_SECONDS)  # the submission may still be creating Jobs this long


@dataclass(frozen=True, kw_only=True)
class HeldRuns:
    """Runs whose Jobs are suspended, and the conditions for starting them."""

    runs: Sequence[str]  # ids, in order
    number: int  # of the attempt that their submission opened
    after: Sequence[str] = ()  # dependencies as text
    at_once: int | None = None
    queue: str | None = None


def write_held(head: RunDir, held: HeldRuns) -> None:
    """Write the file that tells the release controller's pod which runs to start."""
    write_json(head.attempt_dir(held.number) / HELD_FILE, vars(held))


def release_all(held: HeldRuns, root: Path, kube: Kubernetes, sleep: Callable[[float], None] = time.sleep) -> None:
    """Start the held runs one by one; return when each has been started or will never start."""
    waiting = [RunDir(root / name) for name in held.runs]
    others = dependencies_beside(waiting[0], held.after)
    started: list[RunDir] = []
    for poll in itertools.count():
        waiting = [run for run in waiting if not is_over(run)]
        broken = broken_dependencies(others)
        try:
            if broken or all(is_over(other.run) for other in others):
                started = [run for run in started if not is_over(run)]
                if poll % POLLS_PER_JOB_QUERY == 0:
                    started = [run for run in started if not _has_ended(_job(run, held, kube))]
                for run in list(waiting):
                    if not broken and held.at_once is not None and len(started) >= held.at_once:
                        break
                    job = _job(run, held, kube)
                    if job is None and poll < SUBMISSION_POLLS:
                        break  # not created yet: the controller is created before the Jobs
                    if broken:
                        _drop(run, job, held, broken, kube)
                    elif job is not None:
                        _release(run, job, held, kube)
                        started.append(run)
                    else:
                        continue  # deleted, or created later than expected
                    waiting.remove(run)  # only after success: a request without an answer is repeated
                else:
                    return  # no remaining run has a Job; a submission still creating them restores the controller
        except (ApiAwayError, ForbiddenError) as error:
            log.warning("%s; retrying", error)
        if not waiting:
            return
        sleep(POLL_SECONDS)


def _job(run: RunDir, held: HeldRuns, kube: Kubernetes) -> Object | None:
    return kube.find("Job", name_of(run.id, held.number))


def _has_ended(job: Object | None) -> bool:
    """Return True if a started run no longer counts. A cancelled one may never have had a directory on the volume."""
    return job is None or end_of(job) is not None


def _is_held(job: Object) -> bool:
    """Return True if the Job was not started yet; the admission policy lets only its own pods change it after that."""
    return bool(job["spec"].get("suspend")) and QUEUE_LABEL not in (job["metadata"].get("labels") or {})


def _release(run: RunDir, job: Object, held: HeldRuns, kube: Kubernetes) -> None:
    """Start a run's Job unless an earlier pod of this controller has done so."""
    if _is_held(job):
        # with a queue, Kueue takes over; without, Kubernetes starts it
        patch = {"metadata": {"labels": {QUEUE_LABEL: held.queue}}} if held.queue else {"spec": {"suspend": False}}
        with suppress(NotFoundError):  # deleted just now; the next query notices
            kube.patch("Job", name_of(run.id, held.number), patch)
        log.info("%s may start", run.id)


def _drop(
    run: RunDir, job: Object | None, held: HeldRuns, broken: Sequence[tuple[Dependency, Outcome]], kube: Kubernetes
) -> None:
    """End the Job of a run that will never start, and record the cause."""
    outcome = unstarted_outcome(run, broken)
    log.info("%s %s", run.id, outcome.cause)
    annotations = {OUTCOME_ANNOTATION: json.dumps(vars(outcome))}
    if job is not None and _is_held(job):
        spec = {"suspend": False, "parallelism": 0, "activeDeadlineSeconds": 1}
        with suppress(NotFoundError):  # the Job creates no pod and ends
            kube.patch("Job", name_of(run.id, held.number), {"metadata": {"annotations": annotations}, "spec": spec})
    if run.attempts():  # otherwise its directory would be staged only when it starts
        record_missing_outcome(run, outcome.state, outcome.cause)


def main() -> None:
    """Start the held Jobs of one submission."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("attempt", type=int)
    arguments = parser.parse_args()
    configure_logging("release controller")
    head = RunDir(arguments.run_dir)
    raw = read_json(head.attempt_dir(arguments.attempt) / HELD_FILE)
    assert raw is not None, f"{head.path}: no {HELD_FILE}"
    release_all(HeldRuns(**raw), head.path.parent, connect(K8sProfile()))


if __name__ == "__main__":
    main()
