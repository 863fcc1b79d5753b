"""Renders the Service of a run that serves requests: a stable name for its current first pod."""

from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import load
from ropewalk.k8s.names import COMMON_LABELS, ROLE_LABEL, RUN_LABEL, labels_of, name_of
from ropewalk.k8s.profile import K8sProfile

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"  # set by Kubernetes on every pod of an Indexed Job


def served_port(run: RunDir) -> int | None:
    """Return the port at which a run's first pod serves requests, or None if it serves none."""
    port = (run.record.get("service") or {}).get("port")
    return int(port) if port else None


def service_name(run: RunDir) -> str:
    """Return the name of a run's Service, which all attempts and submissions share."""
    return name_of(run.id, 0)


def render_service(run: RunDir, profile: K8sProfile, number: int) -> Object | None:
    """Render the Service of submission `number` of a run; None if the run serves no requests."""
    port = served_port(run)
    if port is None:
        return None
    service = load("service.yaml")
    service["metadata"] = {"name": service_name(run), "labels": {**labels_of(run, number), ROLE_LABEL: "service"}}
    if profile.namespace:
        service["metadata"]["namespace"] = profile.namespace
    service["spec"]["selector"] = {**COMMON_LABELS, RUN_LABEL: run.id, INDEX_LABEL: "0"}
    service["spec"]["ports"] = [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]
    return service
