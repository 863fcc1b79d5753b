"""Submits a Job exactly once, however long the API server is away meanwhile and however often it is asked."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from cluster.backends.recovery import PATIENCE_SECONDS
from cluster.errors import BackendError
from k8s.api.client import ApiAwayError, Kubernetes
from k8s.api.create import create_or_adopt
from k8s.api.objects import Object
from k8s.manifests.job import owned_by

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_SECONDS = 1.0


class SubmissionInDoubtError(BackendError):
    """No API server answered: the objects may exist or not."""


def patiently(
    action: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> T:
    """What an action of a submission returns, which is repeated while no API server answers.

    Raises SubmissionInDoubtError if none does for two minutes.
    """
    deadline, told = clock() + PATIENCE_SECONDS, False
    while True:
        try:
            return action()
        except ApiAwayError as error:
            if clock() > deadline:
                words = f"{error}; nobody answered for {PATIENCE_SECONDS:.0f} s, so the Job may exist or not: when it is back,"
                raise SubmissionInDoubtError(f"{words} `ropewalk ps` tells; a resume never makes a second one") from None
            if not told:
                log.warning("%s; retrying for up to %.0f s (safe: submissions are idempotent)", error, PATIENCE_SECONDS)
                told = True
        sleep(PAUSE_SECONDS)


def submit_once(
    kube: Kubernetes,
    job: Object,
    *,
    before: Sequence[Object] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Object:
    """Create a Job, and the objects that must be there `before` it; it owns these. Returns what it became.

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
        return patiently(create, sleep=sleep, clock=clock)
    except SubmissionInDoubtError:
        raise
    except BackendError:
        for each in [*made, *before]:
            with suppress(BackendError):  # why it was refused matters more
                kube.delete(each["kind"], each["metadata"]["name"])
        raise
