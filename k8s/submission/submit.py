"""Exactly once: a create may time out though it was done, so what exists under the submission's name and key is adopted."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from cluster.backends.submission import PATIENCE_SECONDS, retry_for
from cluster.errors import BackendError, SubmissionInDoubtError
from k8s.api.client import ConflictError, Kubernetes, NotFoundError, Object
from k8s.manifests.job import KEY_ANNOTATION, RUN_LABEL, SUBMISSION_LABEL, owned_by


def submit_once(
    kube: Kubernetes,
    objects: Sequence[Object],
    *,
    before: Sequence[Object] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Object:
    """Create objects, the first of which owns the others; what the first became. It owns those too that must be there `before`.

    Raises BackendError with Kubernetes' own words if it refuses, and leaves nothing then; SubmissionInDoubtError if no API
    server answers for two minutes.
    """
    head, *rest = objects
    made: list[Object] = []

    def create() -> Object:
        for each in before:
            create_or_adopt(kube, each)
        made[:] = [create_or_adopt(kube, head)]
        for each in rest:
            create_or_adopt(kube, owned_by(each, made[0]))
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


def create_or_adopt(kube: Kubernetes, each: Object) -> Object:
    """Create an object, or find that an earlier try of the same submission has. Raises ConflictError if it is another's."""
    try:
        return kube.create(each)
    except ConflictError:
        name = each["metadata"]["name"]
        try:
            there = kube.get(each["kind"], name)
        except NotFoundError:  # it went between the two questions
            return kube.create(each)
        if _marks(there) != _marks(each):
            raise ConflictError(f"{each['kind']} {name} exists already and is not ours; `kubectl delete` it") from None
        return there


def _marks(each: Object) -> tuple[str | None, str | None, str | None]:
    """By which an object is known to be of the same submission."""
    labels, annotations = each["metadata"].get("labels") or {}, each["metadata"].get("annotations") or {}
    return labels.get(RUN_LABEL), labels.get(SUBMISSION_LABEL), annotations.get(KEY_ANNOTATION)
