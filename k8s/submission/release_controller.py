"""Releases held Jobs: once the runs that they wait for have succeeded, and only so many at a time. Runs in a pod of its own.

Usage: python -m ropewalk.k8s.submission.release_controller RUN_DIR ATTEMPT
The run is the first of those that were submitted together; its attempt holds gate.json, which says who is held and for what.
Nothing is remembered in memory: the runs' own directories tell who is over, the Jobs who was released, so that the pod may be
killed at any time.
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
from typing import Any

from ropewalk.cluster.backends.recovery import conclude
from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, failed_of, is_over, unstarted
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
LOOK_SECONDS = 1.0  # between two looks at the runs' files
LOOKS_PER_QUESTION = 10  # every tenth look asks for the Jobs of started runs too
SUBMISSION_LOOKS = round(2 * PATIENCE_SECONDS / LOOK_SECONDS)  # for so long the submission may still be creating Jobs


@dataclass(frozen=True, kw_only=True)
class HeldRuns:
    """Runs whose Jobs are suspended, and what they wait for."""

    runs: Sequence[str]  # ids, in order
    number: int  # the attempt that their submission opened
    after: Sequence[str] = ()  # ids of runs that must succeed first
    at_once: int | None = None
    queue: str | None = None


def write_held(head: RunDir, held: HeldRuns) -> None:
    """Write down for the release controller's pod what it has to release."""
    write_json(head.attempt_dir(held.number) / HELD_FILE, vars(held))


def release_patch(queue: str | None) -> dict[str, Any]:
    """The patch that releases a Job: Kueue decides from here on or, without a queue, Kubernetes starts it."""
    return {"metadata": {"labels": {QUEUE_LABEL: queue}}} if queue else {"spec": {"suspend": False}}


def release_all(held: HeldRuns, root: Path, kube: Kubernetes, sleep: Callable[[float], None] = time.sleep) -> None:
    """Release the runs one after the other; returns when each has been released or will never start."""
    waiting = [RunDir(root / name) for name in held.runs]
    others = [RunDir(root / name) for name in held.after]
    started: list[RunDir] = []
    for look in itertools.count():
        waiting = [run for run in waiting if not is_over(run)]
        failed = failed_of(others)
        try:
            if failed or all(map(is_over, others)):
                started = [run for run in started if not is_over(run)]
                if look % LOOKS_PER_QUESTION == 0:
                    started = [run for run in started if not _has_ended(_job(run, held, kube))]
                for run in list(waiting):
                    if not failed and held.at_once is not None and len(started) >= held.at_once:
                        break
                    job = _job(run, held, kube)
                    if job is None and look < SUBMISSION_LOOKS:
                        break  # it is still to come: the controller is there before the Jobs
                    if failed:
                        _drop(run, job, held, failed, kube)
                    elif job is not None:
                        _release(run, job, held, kube)
                        started.append(run)
                    else:
                        continue  # it is gone, or comes later than it should
                    waiting.remove(run)  # only now: a question that nobody answered is asked again
                else:
                    return  # of those that are left nobody has a Job; a submission that goes on looks for its controller
        except (ApiAwayError, ForbiddenError) as error:
            log.warning("%s; trying again", error)
        if not waiting:
            return
        sleep(LOOK_SECONDS)


def _job(run: RunDir, held: HeldRuns, kube: Kubernetes) -> Object | None:
    return kube.find("Job", name_of(run.id, held.number))


def _has_ended(job: Object | None) -> bool:
    """Whether a released run holds its place no longer: a cancelled one may never have had a directory on the volume."""
    return job is None or end_of(job) is not None


def _is_held(job: Object) -> bool:
    """Whether nobody has released the Job yet: what runs is its own pods' alone, as the admission policy says."""
    return bool(job["spec"].get("suspend")) and QUEUE_LABEL not in (job["metadata"].get("labels") or {})


def _release(run: RunDir, job: Object, held: HeldRuns, kube: Kubernetes) -> None:
    """Start a run's Job; one that an earlier pod of this controller has released stays as it is."""
    if _is_held(job):
        with suppress(NotFoundError):  # it went this moment, which the next question finds
            kube.patch("Job", name_of(run.id, held.number), release_patch(held.queue))
        log.info("%s may start", run.id)


def _drop(run: RunDir, job: Object | None, held: HeldRuns, failed: Sequence[tuple[RunDir, Outcome]], kube: Kubernetes) -> None:
    """End the Job of a run that will never start, and write down the cause."""
    outcome = unstarted(run, failed)
    log.info("%s %s", run.id, outcome.cause)
    told = {OUTCOME_ANNOTATION: json.dumps(vars(outcome))}
    if job is not None and _is_held(job):
        spec = {"suspend": False, "parallelism": 0, "activeDeadlineSeconds": 1}
        with suppress(NotFoundError):  # it makes no pod, and ends
            kube.patch("Job", name_of(run.id, held.number), {"metadata": {"annotations": told}, "spec": spec})
    if run.attempts():  # else its directory is put on the volume only as it starts
        conclude(run, outcome.state, outcome.cause)


def main() -> None:
    """Release the Jobs of one submission."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("attempt", type=int)
    words = parser.parse_args()
    configure_logging("release controller")
    head = RunDir(words.run_dir)
    raw = read_json(head.attempt_dir(words.attempt) / HELD_FILE)
    assert raw is not None, f"{head.path}: no {HELD_FILE}"
    release_all(HeldRuns(**raw), head.path.parent, connect(K8sProfile()))


if __name__ == "__main__":
    main()
