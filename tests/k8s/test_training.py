"""Runs on a real Kubernetes: what becomes of them undisturbed, and in every disturbance that Kubernetes has."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from cluster.spec import RunState
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.toy import KubeToy
from tests.slurm.conftest import until

Start = Callable[..., KubeToy]


def without_a_gap(run: KubeToy, steps: int) -> None:
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.steps() == list(range(1, steps + 1)), f"an announced stop loses no step and repeats none\n{run.said()}"


def job_ends(namespace: Namespace, kind: str) -> None:
    until(lambda: any(c["type"] == kind for c in namespace.job()["status"].get("conditions", [])), 30)


def test_a_run_of_one_pod(start: Start, namespace: Namespace) -> None:
    run = start(steps=5)
    without_a_gap(run, 5)
    job_ends(namespace, "Complete")


def test_evicted_again_and_again(start: Start, namespace: Namespace) -> None:
    """The fifth restart is not slower than the first: Kubernetes by itself waits 10, 20, 40, 80, 160 s."""
    run = start(steps=1000, pause=0.02, resources={"nodes": 2})
    for attempt in range(1, 6):
        run.reach_attempt(attempt)
        namespace.kubectl("delete", "pod", "--wait=false", run.carrier())
    run.reach_attempt(6)
    without_a_gap(run, 1000)
    assert [code for _, code in run.outcomes()] == [85] * 5 + [0]


def test_a_bug_is_retried_in_place_and_a_mistake_never(start: Start, namespace: Namespace) -> None:
    bug, mistake = start("fail", retries={"bugs": 1}), start("refuse")
    assert bug.finish().state is RunState.FAILED
    assert "ZeroDivisionError" in bug.run.last_outcome().cause  # type: ignore[union-attr]
    assert bug.run.attempts() == [1, 2]
    assert bug.run.attempt_details(2)["carrier"] == bug.run.attempt_details(1)["carrier"], "the pod was kept"
    assert mistake.finish().exit_code == 42
    assert mistake.run.attempts() == [1]
    job_ends(namespace, "Failed")


def test_cancel_saves_and_leaves_nothing(start: Start, namespace: Namespace) -> None:
    run = start(steps=5000, resources={"nodes": 2})
    run.reach(5)
    run.backend.cancel(run.run)
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled after saving")
    until(lambda: not namespace.pods(), 30)


def test_a_dead_node_with_a_spare(start: Start, kube: Cluster) -> None:
    """The node of the carrier dies and never returns: the others declare its pod dead, and go on with its successor."""
    run = start(steps=600, resources={"nodes": 2, "cpus": 2})
    run.reach(10)
    kube.kill_node(run.node_of(run.carrier()))
    run.reach_attempt(2)
    print("carrier's node dead, standstill", run.standstill(2))
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert [code for _, code in run.outcomes()] == [143, 0]


def test_a_dead_node_of_a_run_of_one_pod(start: Start, kube: Cluster) -> None:
    """Nobody is left to declare anything: Kubernetes itself replaces the pod, though the node never returns."""
    run = start(steps=600)
    run.reach(10)
    kube.kill_node(run.node_of(run.carrier()))
    run.reach_attempt(2, 120)
    print("only node dead, standstill", run.standstill(2))
    assert run.finish().state is RunState.SUCCEEDED, run.said()


def test_a_node_that_is_cut_off_writes_nothing_any_more(start: Start, kube: Cluster, namespace: Namespace) -> None:
    run = start(steps=2000, pause=0.02)
    run.reach(10)
    old = run.carrier()
    kube.cut_node(run.node_of(old))
    run.reach_attempt(2, 120)
    assert run.carrier() != old
    until(lambda: len(run.steps()) > 0 and run.run.read_metrics()[-1]["attempt"] == 2)
    second = next(i for i, line in enumerate(run.run.read_metrics()) if line["attempt"] == 2)
    kube.mend()
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert all(line["attempt"] == 2 for line in run.run.read_metrics()[second:]), "nothing of the old attempt landed"
    print("cut off, standstill", run.standstill(2))


@pytest.mark.slow
def test_elastic(start: Start, kube: Cluster) -> None:
    """3 pods, 2 when a node dies, 3 when there is one again; then scaled to 1, and back."""
    run = start("count", "ranks", steps=100000, resources={"nodes": "1..3", "cpus": 2})
    until(lambda: run.world() == 3, 60)
    carrier = run.node_of(run.carrier())
    others = [p["spec"]["nodeName"] for p in run.namespace.pods() if p["spec"]["nodeName"] != carrier]
    since = time.time()
    kube.kill_node(others[0])
    until(lambda: run.world() == 2, 60)
    print("shrunk after", time.time() - since, "standstill", longest_pause(run, since))
    since = time.time()
    kube.mend()
    until(lambda: run.world() == 3, 90)
    print("grown after", time.time() - since, "standstill", longest_pause(run, since))
    assert run.run.attempts() == [1]
    since = time.time()
    run.run.request_nodes(1)
    until(lambda: run.world() == 1, 60)
    until(lambda: run.namespace.job()["spec"]["completions"] == 1)
    print("scaled to 1 after", time.time() - since, "standstill", longest_pause(run, since))
    since = time.time()
    run.run.request_nodes(3)
    until(lambda: run.world() == 3, 90)
    print("scaled to 3 after", time.time() - since, "standstill", longest_pause(run, since))
    since = time.time()
    kube.kill_node(carrier)
    run.reach_attempt(2)
    until(lambda: run.world() == 2, 60)
    print("carrier dead, shrunk after", time.time() - since, "standstill", longest_pause(run, since))
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED


def longest_pause(run: KubeToy, since: float) -> float:
    times = [line["time"] for line in run.run.read_metrics()]
    return max(b - a for a, b in pairwise(times) if b > since)
