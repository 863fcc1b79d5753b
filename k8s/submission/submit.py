"""Submits a Job exactly once, however long the API server is away meanwhile and however often it is asked."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from cluster.backends.submission import PATIENCE_SECONDS, retry_for
from cluster.errors import BackendError, SubmissionInDoubtError
from k8s.api.client import Kubernetes
from k8s.api.create import create_or_adopt
from k8s.api.objects import Object
from k8s.manifests.job import owned_by


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
