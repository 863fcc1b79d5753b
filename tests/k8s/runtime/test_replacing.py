"""Pods that are gone and are replaced, or were away for a moment only; the API server is a dictionary here."""

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.pod_replacement import PodReplacer
from ropewalk.k8s.runtime.timings import REPLACEMENT_POLL_SECONDS
from tests.patience import until

IN_TIME_SECONDS = 1.5  # far more than a call takes, on a machine that stands still for a moment too


class Server:
    """One pod, which runs."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {"name": "a", "uid": "1"}
        self.deleted: list[str] = []
        self.lost_machines: list[str] = []
        self.status: dict[str, Any] = {"phase": "Running"}

    def pod(self, name: str) -> dict[str, Any]:
        return {
            "metadata": dict(self.metadata),
            "status": dict(self.status),
            "spec": {"containers": [{"name": "ropewalk"}], "nodeName": "n7"},
        }

    def delete_pod(self, name: str, uid: str) -> None:
        self.deleted.append(uid)
        self.metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def patch_pod_status(self, name: str, status: dict[str, Any]) -> None:
        self.status |= status


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def replacer(server: Server) -> Iterator[PodReplacer]:
    replacer = PodReplacer(cast("InClusterApi", server), server.lost_machines.append)
    yield replacer
    replacer.close()


def test_a_pod_that_was_declared_dead_does_not_stay_when_it_is_back(server: Server, replacer: PodReplacer) -> None:
    """An attempt with it would end as soon as Kubernetes tells it to go."""
    replacer.declare_dead("a", "1")
    until(lambda: server.deleted == ["1"])
    assert not replacer.try_return("1")


def test_a_pod_that_is_back_in_time_stays(server: Server, replacer: PodReplacer) -> None:
    replacer.declare_dead("a", "1", in_seconds=IN_TIME_SECONDS)
    assert replacer.try_return("1")
    time.sleep(IN_TIME_SECONDS + 2 * REPLACEMENT_POLL_SECONDS)  # it would have been deleted by now
    assert not server.deleted


def test_a_machine_has_failed_once_kubernetes_says_so_of_a_dead_pod(server: Server, replacer: PodReplacer) -> None:
    server.status["containerStatuses"] = [{"name": "ropewalk", "state": {"running": {}}}]
    taken = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    server.status["conditions"] = [{**taken, "reason": "EvictionByEvictionAPI"}]
    replacer.declare_dead("a", "1")
    until(lambda: server.deleted == ["1"])
    time.sleep(2 * REPLACEMENT_POLL_SECONDS)
    assert not server.lost_machines, "a drained node is well"
    server.status["conditions"] = [taken]
    until(lambda: server.lost_machines)
    time.sleep(2 * REPLACEMENT_POLL_SECONDS)
    assert server.lost_machines == ["n7"]
