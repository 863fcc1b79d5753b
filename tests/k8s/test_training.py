"""Runs on a real Kubernetes: what becomes of them undisturbed, and in every disturbance that Kubernetes has."""

from collections.abc import Callable

from cluster.spec import RunState
from tests.k8s.toy import KubeToy

Start = Callable[..., KubeToy]


def test_a_run_of_one_pod(start: Start) -> None:
    run = start(steps=5)
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.steps() == [1, 2, 3, 4, 5]
