"""Create an object exactly once: a create may time out though it was done, so what an earlier try has made is adopted."""

from ropewalk.k8s.api.client import ConflictError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.names import KEY_ANNOTATION, RUN_LABEL, SUBMISSION_LABEL


def create_or_adopt(kube: Kubernetes, each: Object) -> Object:
    """Create an object, or find that an earlier try of the same submission has; return what there is now.

    Raises ConflictError if an object of its name is not of the same submission.
    """
    try:
        return kube.create(each)
    except ConflictError:
        name = each["metadata"]["name"]
        try:
            there = kube.get(each["kind"], name)
        except NotFoundError:  # it went between the two questions
            return kube.create(each)
        if _marks(there) != _marks(each):
            raise ConflictError(
                f"{each['kind']} {name} exists already and is of another submission; `kubectl delete` it"
            ) from None
        return there


def _marks(each: Object) -> tuple[str | None, str | None, str | None]:
    """Run, attempt and key, by which the submission of an object is known."""
    labels, annotations = each["metadata"].get("labels") or {}, each["metadata"].get("annotations") or {}
    return labels.get(RUN_LABEL), labels.get(SUBMISSION_LABEL), annotations.get(KEY_ANNOTATION)
