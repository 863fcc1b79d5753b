"""Submits Jobs exactly once each, however long the API server is away meanwhile and however often it is asked."""

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
from ropewalk.k8s.manifests.service import render_service
from ropewalk.k8s.names import job_name_of, release_name
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.staging import add_stage_in, stage_alone

THREADS = 16  # calls in flight; an API server gives each user a fair share


def submit_once(
    kube: Kubernetes,
    job: Object,
    *,
    before: Sequence[Object] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Object:
    """Create a Job, and the objects that must be there `before` it, which it will own; the Job as the server has completed it.

    Raises BackendError with Kubernetes' own words if it refuses, and leaves nothing then; SubmissionInDoubtError if no API
    server answers for two minutes.
    """
    made: list[Object] = []

    def create() -> Object:
        for each in before:
            create_or_adopt(kube, each)
        made[:] = [create_or_adopt(kube, job)]
        for each in before:
            owners = owned_by(each, made[0])["metadata"]["ownerReferences"]
            kube.patch(each["kind"], each["metadata"]["name"], {"metadata": {"ownerReferences": owners}})
        return made[0]

    try:
        return retry_for(PATIENCE_SECONDS, create, sleep=sleep, clock=clock)
    except SubmissionInDoubtError:
        raise
    except BackendError:
        for each in [*made, *before]:
            with suppress(BackendError):  # why it was refused matters more
                kube.delete(each["kind"], each["metadata"]["name"])
        raise


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Runs that are submitted together."""

    runs: Sequence[RunDir]
    number: int  # the attempt of each that it opens
    jobs: Mapping[str, Object]  # by run id
    staged: Mapping[str, Object]  # the ConfigMap in which each is sent along; empty where this machine sees the volume
    held: bool  # whether a release controller lets some of them start


def create_all(kube: Kubernetes, profile: K8sProfile, wanted: Submission) -> None:
    """Create the Jobs of a submission, and what each needs beside it.

    The release controller comes first: a submission that is cut off leaves no Job that nobody releases. Raises as `submit_once`
    does; what was created before stays.
    """
    runs, staged = wanted.runs, wanted.staged
    before = {run.id: [staged[run.id]] if staged else [] for run in runs}
    controller, alone = render_release_controller(runs[0], profile, wanted.number), len(runs) == 1
    beside: list[Object] = []  # what the controller needs that no run has
    if wanted.held and alone:  # it goes with its run
        if staged:
            add_stage_in(controller, runs[0], staged[runs[0].id]["metadata"]["name"])
        before[runs[0].id].append(controller)
    elif wanted.held:
        beside = [stage_alone(controller, runs[0], wanted.number)] if staged else []
        submit_once(kube, controller, before=beside)

    def create(run: RunDir) -> Object:
        return submit_once(kube, wanted.jobs[run.id], before=before[run.id])

    with ThreadPoolExecutor(THREADS) as pool:
        owners = list(pool.map(create, runs))
    if wanted.held:
        controller = owned_by(controller, owners[0]) if alone else controller
        retry_for(PATIENCE_SECONDS, partial(_restore_controller, kube, controller, beside))
    for run, owner in zip(runs, owners, strict=True):
        if (service := render_service(run, profile, wanted.number)) is not None:
            retry_for(PATIENCE_SECONDS, partial(put_service, kube, service, owner))


def _restore_controller(kube: Kubernetes, controller: Object, beside: Sequence[Object]) -> None:
    """Put a release controller there again that has given up waiting for the Jobs, as while a laptop slept that created them."""
    name = controller["metadata"]["name"]
    there = kube.find("Job", name)
    if there is not None and end_of(there) is None:
        return
    for each in beside:
        with suppress(NotFoundError):  # it went with the controller
            kube.patch(each["kind"], each["metadata"]["name"], {"metadata": {"ownerReferences": None}})
    kube.delete("Job", name)
    submit_once(kube, controller, before=beside)


def withdraw(kube: Kubernetes, runs: Sequence[RunDir], number: int) -> None:
    """Delete all of a submission that was refused."""

    def remove(name: str) -> None:
        # who may not delete could not create either; and a Job that stays finds its run over
        with suppress(ForbiddenError, ApiAwayError):
            kube.delete("Job", name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(remove, [release_name(runs[0], number), *map(job_name_of, runs)]))


def put_service(kube: Kubernetes, service: Object, job: Object) -> None:
    """Create the Service, or make one of an earlier submission belong to this Job: its name stays the same. May be repeated."""
    mine = owned_by(service, job)
    if kube.find("Service", service["metadata"]["name"]) is None:
        kube.create(mine)
    else:
        kube.patch(
            "Service", service["metadata"]["name"], {"metadata": mine["metadata"], "spec": {"ports": service["spec"]["ports"]}}
        )
