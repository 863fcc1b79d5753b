"""The nodes on which a profile's pods may run, and their GPUs."""

from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.node_ledger import BadNode, avoided
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.objects import Object, amount
from ropewalk.k8s.names import HOST_LABEL
from ropewalk.k8s.profile import K8sProfile

CONDITIONS = "node.kubernetes.io/"  # prefix of the taints that Kubernetes sets and removes with a node's condition


def requests_gpus(profile: K8sProfile) -> bool:
    """Return True if the profile requests GPUs for every pod."""
    containers = _pod_spec(profile).get("containers") or []
    limits = [(container.get("resources") or {}).get("limits") or {} for container in containers]
    return any(profile.gpu in resources for resources in (profile.devices, *limits))


def gpus_per_node(kube: Kubernetes, profile: K8sProfile) -> int:
    """Return the allocatable GPUs of the node that has most, of those that the profile's pods may run on. Raises BackendError."""
    allocatable = ((node.get("status") or {}).get("allocatable") or {} for node in usable_nodes(kube, profile))
    return max((int(amount(each.get(profile.gpu, 0))) for each in allocatable), default=0)


def usable_nodes(kube: Kubernetes, profile: K8sProfile) -> list[Object]:
    """Return the nodes that the profile's pods may run on. Raises BackendError, such as without the right to list nodes."""
    spec = _pod_spec(profile)
    nodes = kube.list("Node", {**profile.node_selector, **(spec.get("nodeSelector") or {})})
    tolerations = [each.model_dump(exclude_none=True) for each in profile.tolerations] + (spec.get("tolerations") or [])
    # clusters add the toleration of this taint to pods that request the resource
    tolerations.append({"key": profile.gpu, "operator": "Exists"})
    return [node for node in nodes if all(_is_tolerated(taint, tolerations) for taint in node["spec"].get("taints") or [])]


def nodes_to_avoid(kube: Kubernetes, profile: K8sProfile, bad: Sequence[BadNode]) -> list[Object]:
    """Return the nodes that new runs avoid: the worst, at most a tenth. Empty without the right to list nodes."""
    try:
        nodes = {str(node["metadata"]["name"]): node for node in usable_nodes(kube, profile)}
    except BackendError:
        return []
    return [nodes[name] for name in avoided(bad, [*nodes])]


def hosts_of(nodes: Sequence[Object]) -> list[str]:
    """Return the values of the nodes' label for affinity, which is not a node's name everywhere."""
    return [str(node["metadata"]["labels"].get(HOST_LABEL, node["metadata"]["name"])) for node in nodes]


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
