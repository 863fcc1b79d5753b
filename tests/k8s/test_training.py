"""Runs on a real Kubernetes: what becomes of them undisturbed, and in every disturbance that Kubernetes has."""

from collections.abc import Callable

from cluster.spec import RunState
from tests.k8s.cluster import Namespace
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
