"""Renders the Service of a run that serves requests, a stable name for its current first pod, and the policy of its port."""

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
    service = _of_first_pod("service.yaml", run, profile, number)
    service["spec"]["selector"] = _first_pod(run)
    service["spec"]["ports"] = [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]
    return service


def render_service_policy(run: RunDir, profile: K8sProfile, number: int) -> Object | None:
    """Render the NetworkPolicy that opens the served port to everybody, and all ports to pods of ropewalk.

    Without the latter it would close them in a namespace where k8s/manifests/network-policy.yaml is not applied. Returns None
    if the run serves no requests.
    """
    port = served_port(run)
    if port is None:
        return None
    policy = _of_first_pod("service-policy.yaml", run, profile, number)
    policy["spec"]["podSelector"] = {"matchLabels": _first_pod(run)}
    policy["spec"]["ingress"] = [
        {"ports": [{"port": port, "protocol": "TCP"}]},
        {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "ropewalk"}}}]},
    ]
    return policy


def _of_first_pod(template: str, run: RunDir, profile: K8sProfile, number: int) -> Object:
    item = load(template)
    item["metadata"] = {"name": service_name(run), "labels": {**labels_of(run, number), ROLE_LABEL: "service"}}
    if profile.namespace:
        item["metadata"]["namespace"] = profile.namespace
    return item


def _first_pod(run: RunDir) -> dict[str, str]:
    return {**COMMON_LABELS, RUN_LABEL: run.id, INDEX_LABEL: "0"}
