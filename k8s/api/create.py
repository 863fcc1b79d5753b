"""Creates an object exactly once: a create can time out although it succeeded, so the object of an earlier try is adopted."""

from ropewalk.k8s.api.client import ConflictError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.names import KEY_ANNOTATION, RUN_LABEL, SUBMISSION_LABEL


def create_or_adopt(kube: Kubernetes, wanted: Object) -> Object:
    """Create an object, or adopt that of an earlier try of the same submission. Raises ConflictError if it is of another one."""
    try:
        return kube.create(wanted)
    except ConflictError:
        name = wanted["metadata"]["name"]
        try:
            existing = kube.get(wanted["kind"], name)
        except NotFoundError:  # deleted between the two requests
            return kube.create(wanted)
        if _submission_of(existing) != _submission_of(wanted):
            raise ConflictError(
                f"{wanted['kind']} {name} exists already and belongs to another submission; delete it with kubectl"
            ) from None
        return existing


def _submission_of(item: Object) -> tuple[str | None, str | None, str | None]:
    """Return run, attempt and key, which identify the submission of an object."""
    labels, annotations = item["metadata"].get("labels") or {}, item["metadata"].get("annotations") or {}
    return labels.get(RUN_LABEL), labels.get(SUBMISSION_LABEL), annotations.get(KEY_ANNOTATION)
