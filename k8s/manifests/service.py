"""The Service in front of a run that answers requests: one name for its first pod, whichever that is at the moment."""

from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import load
from ropewalk.k8s.names import OURS, ROLE_LABEL, RUN_LABEL, labels_of, name_of
from ropewalk.k8s.profile import K8sProfile

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"  # Kubernetes' own, on every pod of an Indexed Job


def served_port(run: RunDir) -> int | None:
    """The port that a run's first pod answers at, as its record has it; None: it answers no requests of others."""
    found = (run.record.get("service") or {}).get("port")
    return int(found) if found else None


def service_name(run: RunDir) -> str:
    """The name of a run's Service: the same for every attempt and every submission."""
    return name_of(run.id, 0)


def render_service(run: RunDir, profile: K8sProfile, number: int) -> Object | None:
    """The Service of submission `number` of a run; None for a run that answers no requests of others."""
    port = served_port(run)
    if port is None:
        return None
    service = load("service.yaml")
    service["metadata"] = {"name": service_name(run), "labels": {**labels_of(run, number), ROLE_LABEL: "service"}}
    if profile.namespace:
        service["metadata"]["namespace"] = profile.namespace
    service["spec"]["selector"] = {**OURS, RUN_LABEL: run.id, INDEX_LABEL: "0"}
    service["spec"]["ports"] = [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]
    return service
