"""GPUs of a cluster's nodes: those that pods of the profile may use count, and it is said where nobody may look."""

import os
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.run.node_ledger import bad_nodes
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.http_transport import HttpTransport
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.status.gpu_nodes import hosts_of, nodes_to_avoid
from tests.k8s.cluster import Cluster, Namespace

ALLOCATABLE = {"cpu": "127610m", "memory": "1975811088Ki", "pods": "110", "ephemeral-storage": "5018305216Ki"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TEAM_TAINT = {"key": "dedicated", "value": "team", "effect": "NoSchedule"}


def node(name: str, gpus: int, *taints: dict[str, str], **labels: str) -> dict[str, Any]:
    """A node as the API server lists it."""
    more = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", **labels}},
        "spec": {"podCIDR": "10.0.1.0/24", **({"taints": list(taints)} if taints else {})},
        "status": {"capacity": {**ALLOCATABLE, **more}, "allocatable": {**ALLOCATABLE, **more}},
    }


NODES = [
    node("control", 4, {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}),
    node("cpu", 0),
    node("a100", 2, GPU_TAINT, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, pool="a100"),
    node("h100", 8, TEAM_TAINT, pool="h100"),
]


def backend(status: int = 200, **options: Any) -> K8sBackend:
    """A cluster of NODES, or one that answers with an error."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/api/v1/nodes", "nodes belong to no namespace"
        if status != 200:
            body = {
                "kind": "Status",
                "message": 'nodes is forbidden: User "me" cannot list resource "nodes"',
                "reason": "Forbidden",
            }
            return httpx2.Response(status, json=body)
        wanted = dict(pair.split("=") for pair in request.url.params.get("labelSelector", "").split(",") if pair)
        items = [each for each in NODES if wanted.items() <= each["metadata"]["labels"].items()]
        return httpx2.Response(200, json={"kind": "NodeList", "items": items})

    client = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://127.0.0.1:9")
    return K8sBackend(Profile(name="team", backend="k8s", options=options), Kubernetes(HttpTransport(client), "team"))


def test_the_worst_of_the_nodes_that_pods_may_use_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid() or 1000
    ledger = tmp_path / f".nodes/team-{user}.jsonl"
    ledger.parent.mkdir()
    for day, (run, name) in enumerate([("a", "n3"), ("b", "n3"), ("a", "control"), ("b", "control"), ("c", "n4")]):
        append_line(ledger, {"time": time.time() - 86400 * (day + 1), "node": name, "cause": "gpu", "run": run, "attempt": 1})
    os.chown(ledger, user, -1)
    nodes = [NODES[0], *(node(f"n{number}", 8, **{"kubernetes.io/hostname": f"host-{number}"}) for number in range(9))]
    monkeypatch.setattr(f"{__name__}.NODES", nodes)
    cluster = backend(user=user)
    assert not cluster.avoided_nodes(tmp_path), "a tenth of nine is none"
    nodes.append(node("n9", 8))
    assert cluster.avoided_nodes(tmp_path) == ["n3"]
    bad = bad_nodes(cluster.failures(tmp_path), time.time())
    assert hosts_of(nodes_to_avoid(cluster.kube, cluster.profile, bad)) == ["host-3"]
    assert not backend(403, user=user).avoided_nodes(tmp_path), "without the right to list nodes"


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 2),
        ({"tolerations": [{"key": "dedicated", "value": "team"}]}, 8),
        ({"tolerations": [{"key": "dedicated", "value": "other"}]}, 2),
        ({"tolerations": [{"operator": "Exists"}]}, 8),
        ({"node_selector": {"pool": "h100"}}, 0),
        ({"pod": {"spec": {"nodeSelector": {"pool": "h100"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}}}, 8),
        ({"node_selector": {"pool": "a100"}}, 2),
        ({"gpu": "amd.com/gpu"}, 0),
        ({"devices": {"nvidia.com/gpu": 8}}, 0),  # every pod of the profile has them
        ({"pod": {"spec": {"containers": [{"name": "ropewalk", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}, 0),
    ],
)
def test_gpus_of_the_nodes_that_the_profiles_pods_may_use_count(options: dict[str, Any], gpus: int) -> None:
    assert backend(**options).gpu_supply().per_node == gpus


def test_without_the_right_to_list_nodes_it_is_unknown() -> None:
    with pytest.raises(BackendError, match="cannot list resource"):
        backend(403).gpu_supply()


def test_a_real_api_server_tells_the_gpus_of_a_node(kube: Cluster, namespace: Namespace) -> None:
    options = namespace.options(node_selector={"pool": "rented"})
    cluster = K8sBackend(Profile(name="lab", backend="k8s", options=options))
    assert cluster.gpu_supply().per_node == 0
    metadata = {"name": "rented-gpus", "labels": {"pool": "rented"}}
    kube.rest.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [GPU_TAINT]}})
    try:
        cluster.kube.patch("Node", "rented-gpus", {"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, part="status")
        assert cluster.gpu_supply().per_node == 8
    finally:
        kube.rest.delete("Node", name="rented-gpus")
        cluster.kube.close()
