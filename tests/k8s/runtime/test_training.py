"""Runs on a real Kubernetes: what becomes of them undisturbed, and in every disturbance that Kubernetes has."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.runtime.timings import LOST_SECONDS
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

Start = Callable[..., KubeToy]


def without_a_gap(run: KubeToy, steps: int) -> None:
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.steps() == list(range(1, steps + 1)), f"an announced stop loses no step and repeats none\n{run.said()}"


def job_ends(namespace: Namespace, kind: str) -> None:
    until(lambda: any(c["type"] == kind for c in namespace.job()["status"].get("conditions", [])), Patience.START)


def namespace_of(process: psutil.Process) -> str:
    """Identifier of the namespace that all processes of a pod share."""
    return os.readlink(f"/proc/{process.pid}/ns/pid")


@pytest.mark.soak("make test stops pods in test_a_dead_node_with_a_spare")
@pytest.mark.parametrize("times", [1, 5])
def test_evicted_again_and_again(start: Start, namespace: Namespace, times: int) -> None:
    """The fifth restart is not slower than the first: Kubernetes by itself waits 10, 20, 40, 80, 160 s."""
    run = start(steps=100 * times, pause=0.02, resources={"nodes": 2})
    for attempt in range(1, times + 1):
        run.reach_attempt(attempt)
        namespace.kubectl("delete", "pod", "--wait=false", run.leader())
    without_a_gap(run, 100 * times)
    assert [code for _, code in run.outcomes()] == [85] * times + [0]
    assert max(run.standstill(attempt) for attempt in range(2, times + 2)) < 20, "no pause has grown"


@pytest.mark.soak(
    "two runs; test_a_bug_is_retried_within_its_budget_and_explained and test_a_refused_run_says_so_everywhere have them on"
    " this machine, test_a_refused_gate_has_a_state_of_its_own on Slurm"
)
def test_a_bug_is_retried_in_place_and_a_refused_gate_never(start: Start, namespace: Namespace) -> None:
    bug, refused = start("fail", retries={"bugs": 1}), start("gate")
    assert bug.finish().state is RunState.FAILED
    assert "ZeroDivisionError" in bug.run.last_outcome().cause  # type: ignore[union-attr]
    assert bug.run.attempts() == [1, 2]
    assert bug.run.attempt_details(2)["carrier"] == bug.run.attempt_details(1)["carrier"], "the pod was kept"
    outcome = refused.finish()
    assert (outcome.state, outcome.results, refused.run.attempts()) == (RunState.REFUSED, {"scores": {"right": 0.2}}, [1])
    assert refused.state.state is RunState.REFUSED, "as ps has it"
    job_ends(namespace, "Failed")


@pytest.mark.soak("pods watch the limit as all agents do: cluster/test_disturbances.py::test_the_time_limit_requeues")
def test_the_time_limit_ends_an_attempt_and_not_the_run(start: Start) -> None:
    run = start(steps=100, resources={"time_limit_minutes": 0.07, "grace_seconds": 2})
    without_a_gap(run, 100)
    assert len(run.run.attempts()) > 1
    first = run.run.outcome(1)
    assert first is not None
    assert (first.exit_code, first.cause) == (85, "stopped: time limit")


@pytest.mark.soak("test_members.py covers it without pods")
def test_a_machine_that_stands_still_disturbs_nobody(start: Start) -> None:
    """For longer than a pod may be silent, as a host that is paused does: nobody has heard of anybody then."""
    run = start("count", "ranks", steps=200, resources={"nodes": 2})
    run.reach(5)
    processes = processes_of(run.run.id)
    for process in processes:
        process.suspend()
    time.sleep(LOST_SECONDS + 2)
    for process in processes:
        process.resume()
    without_a_gap(run, 200)
    assert [code for _, code in run.outcomes()] == [0]


@pytest.mark.soak("test_a_dead_node_with_a_spare moves leadership too")
def test_a_killed_coordinator_is_succeeded(start: Start, namespace: Namespace) -> None:
    """Agents of the lost coordinator save, as long as their pods live."""
    run = start("count", "ranks", steps=200, resources={"nodes": 2})
    run.reach(5)
    named = "'-m ropewalk.k8s.runtime.' + 'coordinator'"  # in two pieces, so that it does not find itself
    kill = f"import psutil; [p.kill() for p in psutil.process_iter() if {named} in ' '.join(p.cmdline())]"
    namespace.kubectl("exec", run.leader(), "--", namespace.cluster.python, "-c", kill)
    without_a_gap(run, 200)
    assert [code for _, code in run.outcomes()] == [143, 0]


@pytest.mark.soak("test_a_dead_node_with_a_spare moves leadership too")
def test_a_leader_that_stands_still_is_succeeded(start: Start) -> None:
    """A volume that hangs has this effect: the machine still accepts connections, and Kubernetes sees nothing."""
    run = start("count", "ranks", steps=100, resources={"nodes": 2})
    run.reach(5)
    processes = processes_of(run.run.id)
    leader = next(p for p in processes if "ropewalk.k8s.runtime.coordinator" in p.cmdline())
    frozen = [p for p in processes if namespace_of(p) == namespace_of(leader)]
    assert len(frozen) < len(processes)
    for process in frozen:
        process.suspend()
    try:
        assert run.finish().state is RunState.SUCCEEDED, run.said()
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):  # its pod was deleted
                process.resume()
    assert [code for _, code in run.outcomes()] == [143, 0], run.said()


def test_a_dead_node_with_a_spare(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """The node of the leader dies: another pod takes over, and the agents and the attempt go on."""
    run = start("count", "ranks", steps=300, resources={"nodes": 2, "spare_nodes": 1, "cpus": 2})
    run.reach(5)
    first = run.leader()
    lab.kill_node(run.node_of(first))
    until(lambda: run.leader() != first, Patience.STEP)
    without_a_gap(run, 300)
    assert (run.run.attempts(), {line["world"] for line in run.run.read_metrics()}) == ([1], {2}), run.said()
    started = [agent["node"] for agent in read_lines(run.run.attempt_dir(1) / AGENTS)]
    assert sorted(started) == [0, 1, 2], "no agent is started anew"
    assert [(event["node"], event["address"]) for event in run.events("node_lost")] == [(0, run.pods_of_agents()[0])]


@pytest.mark.soak("make test runs test_a_dead_node_with_a_spare; this run has no spare node of its own")
def test_a_dead_node_of_a_cluster_with_more(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """The node of the leader dies and never returns: the others declare its pod dead, and begin an attempt with its successor."""
    run = start(steps=100, resources={"nodes": 2, "cpus": 2})
    run.reach(5)
    lab.kill_node(run.node_of(run.leader()))
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert [code for _, code in run.outcomes()] == [143, 0]
    job_ends(namespace, "Complete")


@pytest.mark.soak("make test runs test_a_dead_node_with_a_spare")
def test_the_only_pods_node_dies_and_never_returns(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """No other pod can declare it dead: Kubernetes gives the pod up, and its Job makes another one."""
    run = start(steps=60)
    run.reach(10)
    lab.kill_node(run.node_of(run.leader()))
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    without_a_gap(run, 60)
    assert [code for _, code in run.outcomes()] == [143, 0]
    job_ends(namespace, "Complete")


@pytest.mark.soak("make test runs test_a_dead_node_with_a_spare")
def test_a_dead_node_without_a_spare(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """A run that needs all its nodes waits, and says for what."""
    run = start("count", "ranks", steps=400, resources={"nodes": 3, "cpus": 2})
    run.reach(10)
    lab.kill_node(next(p["spec"]["nodeName"] for p in namespace.pods() if p["metadata"]["name"] != run.leader()))
    until(lambda: run.run.outcome(1), Patience.STEP)
    until(lambda: "Insufficient cpu" in run.state.reason, Patience.STEP)
    assert run.state.state is RunState.REQUEUED
    lab.mend()
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert [code for _, code in run.outcomes()] == [143, 0]


@pytest.mark.soak("make test runs test_an_orphan_neither_saves_nor_logs")
@pytest.mark.slow
def test_a_node_that_is_cut_off_writes_nothing_any_more(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """The node holds the only pod of a run: nobody is left to declare it dead, and Kubernetes itself replaces it."""
    run = start(steps=100000, pause=0.02)
    run.reach(10)
    old = run.leader()
    lab.cut_node(run.node_of(old))
    run.reach_attempt(2, Patience.RUN)
    assert run.leader() != old
    count = len(run.run.read_metrics())
    lab.mend()  # the old pod is told to go
    until(lambda: not any(pod["metadata"]["name"] == old for pod in namespace.pods()), Patience.STEP)
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED, run.said()
    assert {line["attempt"] for line in run.run.read_metrics()[count:]} == {2}, "nothing of the old attempt has landed"
    assert run.run.attempts() == [1, 2]


@pytest.mark.soak("make test runs elastic runs on Slurm and on this machine")
@pytest.mark.slow
def test_an_elastic_run_has_the_nodes_that_there_are(start: Start, lab: Cluster, namespace: Namespace) -> None:
    """Three, two when one dies, three when it is back; then scaled to one and back; then the leader's node dies."""
    run = start("count", "ranks", steps=100000, resources={"nodes": "1..3", "cpus": 2})
    until(lambda: run.world() == 3, Patience.STEP)
    leader = run.node_of(run.leader())
    lab.kill_node(next(p["spec"]["nodeName"] for p in namespace.pods() if p["spec"]["nodeName"] != leader))
    until(lambda: run.world() == 2, Patience.STEP)
    lab.mend()
    until(lambda: run.world() == 3, Patience.RUN)
    run.run.request_nodes(1)
    until(lambda: run.world() == 1, Patience.STEP)
    until(lambda: namespace.job()["spec"]["completions"] == 1)
    run.run.request_nodes(3)
    until(lambda: run.world() == 3, Patience.RUN)
    assert run.run.attempts() == [1], "all of that within one attempt"
    lab.kill_node(leader)
    until(lambda: run.world() == 2, Patience.STEP)
    lab.mend()
    until(lambda: run.world() == 3, Patience.RUN)
    lab.cut_node(run.node_of(run.leader()))
    until(lambda: run.world() == 2, Patience.STEP)
    assert run.run.attempts() == [1], "other pods have taken over"
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
