"""Runs in Kueue's queues: preempted, resumed, admitted in part."""

import time
from collections.abc import Callable, Iterator

import pytest

from ropewalk.cluster.spec import RunState
from tests.k8s.cluster import Namespace
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

Start = Callable[..., KubeToy]


@pytest.fixture
def queue(namespace: Namespace) -> Iterator[dict[str, str]]:
    """Keys of a profile for a queue of four CPUs."""
    yield {"queue": make_queue(namespace, 4), "queue_priority": f"{namespace.name}-low"}
    drop_queue(namespace)


@pytest.mark.soak("half a minute; make test preempts runs on this machine and on Slurm, and kills a node of pods")
def test_preempted_again_and_again(start: Start, namespace: Namespace, queue: dict[str, str]) -> None:
    run = start(steps=180, profile=queue, resources={"nodes": 2})
    for attempt in range(1, 4):
        run.reach_attempt(attempt)
        urgent(namespace, f"urgent-{attempt}", cpus=3)
        until(lambda attempt=attempt: run.run.outcome(attempt), Patience.STEP)
        until(lambda: not [p for p in namespace.pods() if "ropewalk/run" in p["metadata"]["labels"]], Patience.START)
        namespace.kubectl("delete", "job", f"urgent-{attempt}", "--wait=false")
        free = time.time()
        run.reach_attempt(attempt + 1)
        first = min(line["time"] for line in run.run.read_metrics() if line["attempt"] == attempt + 1)
        print(f"quota free -> next step {first - free:.1f} s")
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.outcomes() == [("PREEMPTED", 85)] * 3 + [("SUCCEEDED", 0)]
    assert run.steps() == list(range(1, 181)), "a preemption loses no step and repeats none"


@pytest.mark.soak("make test preempts runs on this machine and on Slurm, and kills a node of pods")
def test_elastic_in_a_queue(start: Start, namespace: Namespace, queue: dict[str, str]) -> None:
    """Four pods are asked for, three are admitted; Kueue lets no such Job be resized, so one that is not wanted stays idle."""
    urgent(namespace, "other", cpus=1)
    until(namespace.pods)
    run = start("count", "ranks", steps=100000, profile=queue, resources={"nodes": "1..4"})
    until(lambda: run.world() == 3, Patience.RUN)
    run.run.request_nodes(2)
    until(lambda: run.world() == 2, Patience.STEP)
    run.run.request_nodes(4)
    until(lambda: run.world() == 3, Patience.STEP)
    assert run.run.attempts() == [1]
    urgent(namespace, "more", cpus=2)
    until(lambda: run.run.outcome(1), Patience.STEP)
    run.reach_attempt(2)
    assert run.outcomes() == [("PREEMPTED", 85)]
    until(lambda: run.world() == 1, Patience.STEP)
