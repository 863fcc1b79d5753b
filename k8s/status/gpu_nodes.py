"""GPUs of the nodes on which a profile's pods may run."""

from collections.abc import Mapping
from typing import Any

from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.objects import Object, amount
from ropewalk.k8s.profile import K8sProfile

CONDITIONS = "node.kubernetes.io/"  # prefix of the taints that Kubernetes sets and removes with a node's condition


def requests_gpus(profile: K8sProfile) -> bool:
    """Return True if the profile requests GPUs for every pod."""
    containers = _pod_spec(profile).get("containers") or []
    limits = [(container.get("resources") or {}).get("limits") or {} for container in containers]
    return any(profile.gpu in resources for resources in (profile.devices, *limits))


def gpus_per_node(kube: Kubernetes, profile: K8sProfile) -> int:
    """Return the allocatable GPUs of the node that has most, of those that the profile's pods may run on. Raises BackendError."""
    spec = _pod_spec(profile)
    nodes = kube.list("Node", {**profile.node_selector, **(spec.get("nodeSelector") or {})})
    tolerations = [each.model_dump(exclude_none=True) for each in profile.tolerations] + (spec.get("tolerations") or [])
    # clusters add the toleration of this taint to pods that request the resource
    tolerations.append({"key": profile.gpu, "operator": "Exists"})
    usable = [node for node in nodes if all(_is_tolerated(taint, tolerations) for taint in node["spec"].get("taints") or [])]
    return max(
        (int(amount(((node.get("status") or {}).get("allocatable") or {}).get(profile.gpu, 0))) for node in usable), default=0
    )


def _is_tolerated(taint: Object, tolerations: list[Object]) -> bool:
    if taint["effect"] == "PreferNoSchedule" or taint["key"].startswith(CONDITIONS):
        return True
    return any(
        each.get("key") in (None, taint["key"])
        and each.get("effect") in (None, taint["effect"])
        and (each.get("operator") == "Exists" or each.get("value", "") == taint.get("value", ""))
        for each in tolerations
    )


def _pod_spec(profile: K8sProfile) -> Mapping[str, Any]:
    return profile.pod.get("spec") or {}
