"""A real Kubernetes for the whole session, brought up by the first test that asks for it, and namespaces in it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.lab import lab_cluster
from tests.k8s.outside import outside_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """The cluster of KUBECONFIG_TEST, else the lab; skips, with how to get one, where there is neither."""
    with outside_cluster() if os.environ.get("KUBECONFIG_TEST") else lab_cluster() as server:
        yield server


@pytest.fixture
def kube(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, with all its nodes well; what a test breaks is mended after it, and its namespaces go."""
    cluster.settle()
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    try:
        yield cluster
    finally:
        cluster.mend()
        cluster.forget_namespaces()


@pytest.fixture
def lab(kube: Cluster) -> Cluster:
    """The cluster, where a test may break it."""
    if kube.script is None:
        pytest.skip("only a cluster of the lab may be broken: unset KUBECONFIG_TEST where there is one")
    return kube


@pytest.fixture
def namespace(kube: Cluster) -> Namespace:
    """A namespace of its own under Pod Security's `restricted`, with a volume, a service account and its Role."""
    return kube.namespace()


@pytest.fixture
def start(namespace: Namespace) -> Iterator[Callable[..., Any]]:
    """Start toy runs (see `KubeToy`) in the test's namespace."""
    from tests.k8s.toy import KubeToy

    started: list[KubeToy] = []

    def make(entry: str = "tick", engine: str = "process", **settings: Any) -> KubeToy:
        started.append(KubeToy(namespace, entry, engine, **settings))
        return started[-1]

    yield make
    for run in started:
        run.close()
