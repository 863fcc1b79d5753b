"""Creates each Job of a submission exactly once, even if the API server is unavailable meanwhile or calls are repeated."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, retry_for
from ropewalk.cluster.errors import BackendError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.create import create_or_adopt
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.manifests.job import owned_by, render_release_controller
from ropewalk.k8s.manifests.service import render_service, render_service_policy
from ropewalk.k8s.names import job_name_of, release_name
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.staging import add_stage_in, stage_alone

log = logging.getLogger(__name__)

PORT_NOT_OPENED = "the NetworkPolicy of its port was not created, so a policy of the namespace may keep clients away"
THREADS = 16  # concurrent requests; API servers limit each user to a fair share


def submit_once(
    kube: Kubernetes,
    job: Object,
    *,
    before: Sequence[Object] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Object:
    """Create a Job, and before it the objects `before`, which it will own; return the Job as completed by the server.

    Raises BackendError with Kubernetes' message if it refuses, after deleting what was created; SubmissionInDoubtError if no API
    server answers for two minutes.
    """
    created: list[Object] = []

    def create() -> Object:
        for item in before:
            create_or_adopt(kube, item)
        created[:] = [create_or_adopt(kube, job)]
        for item in before:
            owners = owned_by(item, created[0])["metadata"]["ownerReferences"]
            kube.patch(item["kind"], item["metadata"]["name"], {"metadata": {"ownerReferences": owners}})
        return created[0]

    try:
        return retry_for(PATIENCE_SECONDS, create, sleep=sleep, clock=clock)
    except SubmissionInDoubtError:
        raise
    except BackendError:
        for item in [*created, *before]:
            with suppress(BackendError):  # the reason of the refusal matters more
                kube.delete(item["kind"], item["metadata"]["name"])
        raise


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Runs that are submitted together."""

    runs: Sequence[RunDir]
    number: int  # of the attempt that it opens in each run
    jobs: Mapping[str, Object]  # by run id
    staged: Mapping[str, Object]  # ConfigMap of each run by run id; empty if this machine mounts the volume
    held: bool  # True if a release controller starts some of the runs


def create_all(kube: Kubernetes, profile: K8sProfile, submission: Submission) -> None:
    """Create the Jobs of a submission with the other objects that they need.

    The release controller is created first, so that an interrupted submission leaves no Job that nothing starts. Raises as
    `submit_once` does; Jobs that were already created stay.
    """
    runs, staged = submission.runs, submission.staged
    before = {run.id: [staged[run.id]] if staged else [] for run in runs}
    controller, alone = render_release_controller(runs[0], profile, submission.number), len(runs) == 1
    controller_objects: list[Object] = []  # objects that only the controller needs
    if submission.held and alone:  # the controller is owned by the run's Job
        if staged:
            add_stage_in(controller, runs[0], staged[runs[0].id]["metadata"]["name"])
        before[runs[0].id].append(controller)
    elif submission.held:
        controller_objects = [stage_alone(controller, runs[0], submission.number)] if staged else []
        submit_once(kube, controller, before=controller_objects)

    def create(run: RunDir) -> Object:
        return submit_once(kube, submission.jobs[run.id], before=before[run.id])

    with ThreadPoolExecutor(THREADS) as pool:
        owners = list(pool.map(create, runs))
    if submission.held:
        controller = owned_by(controller, owners[0]) if alone else controller
        retry_for(PATIENCE_SECONDS, partial(_restore_controller, kube, controller, controller_objects))
    for run, owner in zip(runs, owners, strict=True):
        if (service := render_service(run, profile, submission.number)) is not None:
            retry_for(PATIENCE_SECONDS, partial(put_for_job, kube, service, owner))
        if (policy := render_service_policy(run, profile, submission.number)) is not None:
            _open_port(kube, run, policy, owner)


def _open_port(kube: Kubernetes, run: RunDir, policy: Object, owner: Object) -> None:
    """Create the NetworkPolicy of the served port. Without permission to do so the run goes on, with an event that says so."""
    try:
        retry_for(PATIENCE_SECONDS, partial(put_for_job, kube, policy, owner))
    except ForbiddenError as error:
        run.event("port_not_opened", error=str(error))
        log.warning("%s: %s: %s", run.id, PORT_NOT_OPENED, error)


def _restore_controller(kube: Kubernetes, controller: Object, needed: Sequence[Object]) -> None:
    """Create the release controller again if it gave up waiting for the Jobs, for example while a laptop was suspended."""
    name = controller["metadata"]["name"]
    existing = kube.find("Job", name)
    if existing is not None and end_of(existing) is None:
        return
    for item in needed:
        with suppress(NotFoundError):  # deleted with the controller
            kube.patch(item["kind"], item["metadata"]["name"], {"metadata": {"ownerReferences": None}})
    kube.delete("Job", name)
    submit_once(kube, controller, before=needed)


def withdraw(kube: Kubernetes, runs: Sequence[RunDir], number: int) -> None:
    """Delete all objects of a submission that was refused."""

    def remove(name: str) -> None:
        # without permission to delete nothing could be created either; and a Job that stays finds that its run is over
        with suppress(ForbiddenError, ApiAwayError):
            kube.delete("Job", name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(remove, [release_name(runs[0], number), *map(job_name_of, runs)]))


def put_for_job(kube: Kubernetes, item: Object, job: Object) -> None:
    """Create an object of a run, or transfer that of an earlier submission to this Job. May be repeated."""
    owned, name = owned_by(item, job), item["metadata"]["name"]
    if kube.find(item["kind"], name) is None:
        kube.create(owned)
    else:
        kube.patch(item["kind"], name, {"metadata": owned["metadata"], "spec": item["spec"]})
