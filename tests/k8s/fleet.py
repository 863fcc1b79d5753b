"""Many runs at once, on nodes that kwok plays: their pods run for ever, and no process of them exists."""

import time
from collections import Counter
from typing import Any

from ropewalk.cluster.backends.base import BackendState, Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.backend import K8sBackend
from tests.k8s.cluster import Cluster, Namespace

TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
ON_PLAYED_NODES = {"node_selector": {"type": "kwok"}, "tolerations": [{"key": TAINT["key"], "operator": "Exists"}]}


def add_nodes(cluster: Cluster, count: int) -> None:
    """Nodes that kwok plays, whose pods do not end by themselves."""
    cluster.need("kwok.x-k8s.io", "kwok")
    nodes: list[dict[str, Any]] = []
    for i in range(count):
        metadata = {"name": f"played-{i}", "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "kwok"}}
        nodes.append({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [TAINT]}})
    cluster.kubectl("delete", "stage", "pod-complete", "--ignore-not-found")
    cluster.rest.apply(*nodes)


def remove_nodes(cluster: Cluster) -> None:
    """Nobody who counts the nodes finds them later."""
    cluster.kubectl("delete", "node", "--selector", "type=kwok", "--wait=false")


class Fleet:
    """Runs that are submitted, looked at and cancelled together, and how long that took."""

    def __init__(self, namespace: Namespace, count: int) -> None:
        options = namespace.options(**ON_PLAYED_NODES)
        self.backend = K8sBackend(Profile(name="lab", backend="k8s", options=options))
        self.resources = Resources.model_validate({"cpus": 1})
        record = {
            "job": "toy",
            "entry": "tests.fakes.toy:tick",
            "engine": "process",
            "preload": [],
            "sidecars": [],
            "config": {"steps": 10},
            "resources": self.resources.model_dump(mode="json"),
            "cluster": "lab",
            "code": namespace.code,
            "created": time.time(),
        }
        self.runs = RunDir.create_all(["toy"] * count, [record] * count, namespace.runs)
        self.calls: list[str] = []
        self._count_lists()

    def _count_lists(self) -> None:
        kube = self.backend.kube
        real = kube.list

        def counted(kind: str, *arguments: Any, **more: Any) -> Any:
            self.calls.append(kind)
            return real(kind, *arguments, **more)

        kube.list = counted  # type: ignore[method-assign]

    def close(self) -> None:
        self.backend.kube.close()

    def submit(self) -> float:
        return self._timed(lambda: self.backend.submit_many(self.runs, self.resources))

    def look(self) -> tuple[float, dict[str, BackendState], list[str]]:
        """Seconds, each run's state, and the list calls that it took."""
        self.calls.clear()
        results: dict[str, BackendState] = {}
        seconds = self._timed(lambda: results.update(self.backend.states(self.runs)))
        return seconds, results, list(self.calls)

    def cancel(self) -> float:
        return self._timed(lambda: self.backend.cancel_many(self.runs))

    @staticmethod
    def words(states: dict[str, BackendState]) -> dict[str, int]:
        return dict(Counter(state.state.value for state in states.values()))

    @staticmethod
    def _timed(action: Any) -> float:
        before = time.monotonic()
        action()
        return time.monotonic() - before
