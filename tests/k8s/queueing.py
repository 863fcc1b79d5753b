"""Kueue in a test's namespace: a queue with so many CPUs, and something more urgent to take them away."""

from typing import Any

from tests.k8s.cluster import Namespace
from tests.patience import Patience, until

FLAVOR = "default"


def make_queue(namespace: Namespace, cpus: int) -> str:
    """A LocalQueue of `cpus` CPUs; its name. Two priorities exist beside it, NAMESPACE-low and NAMESPACE-high."""
    namespace.cluster.need("kueue.x-k8s.io", "Kueue")
    name = namespace.name
    quota = {"name": "cpu", "nominalQuota": cpus}
    group = {"coveredResources": ["cpu"], "flavors": [{"name": FLAVOR, "resources": [quota]}]}
    spec = {"namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"}, "resourceGroups": [group]}
    version = "kueue.x-k8s.io/v1beta1"
    objects: list[dict[str, Any]] = [
        {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}},
        {"apiVersion": version, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec},
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": "team", "namespace": name},
            "spec": {"clusterQueue": name},
        },
    ]
    objects += [
        {"apiVersion": version, "kind": "WorkloadPriorityClass", "metadata": {"name": f"{name}-{word}"}, "value": value}
        for word, value in (("low", 1), ("high", 1000))
    ]
    namespace.cluster.rest.apply(*objects)
    until(lambda: _active(namespace), Patience.START)
    return "team"


def _active(namespace: Namespace) -> bool:
    queues = namespace.items("LocalQueue")
    return any(c["type"] == "Active" and c["status"] == "True" for q in queues for c in q.get("status", {}).get("conditions", []))


def urgent(namespace: Namespace, name: str, cpus: int, seconds: float = 600) -> None:
    """A more urgent Job in the queue, which does nothing for some seconds."""
    labels = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": f"{namespace.name}-high"}
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main",
        "image": namespace.cluster.image,
        "command": ["sleep", str(seconds)],
        "resources": {"requests": {"cpu": cpus}},
        "securityContext": security,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace.name, "labels": labels},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
    namespace.cluster.rest.apply(job)


def drop_queue(namespace: Namespace) -> None:
    """Delete the objects of the queue that are outside the namespace."""
    namespace.cluster.rest.delete("ClusterQueue", name=namespace.name)
    for word in ("low", "high"):
        namespace.cluster.rest.delete("WorkloadPriorityClass", name=f"{namespace.name}-{word}")
