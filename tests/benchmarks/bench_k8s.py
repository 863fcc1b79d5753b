"""Seconds to the first step on real Kubernetes (see bench_k8s_start.py), and from a disturbance to the next new step.

    python -m tests.benchmarks.bench_k8s [--rounds 1] [--pairs 3]      as root, where the lab is found (see tests/k8s/lab.py)

What is disturbed is a counter of 20 steps a second with a checkpoint each, so that what is measured is the machinery. Prints
one JSON object; each standstill is told on stderr as soon as it is known.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.bench_k8s_start import contest
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.lab import lab_cluster
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

EVICTIONS = 5
URGENT_SECONDS = 600

Figures = dict[str, float]


def to_next_step(run: KubeToy, disturb: Callable[[], object]) -> float:
    """Seconds without a new step after `disturb`, in the attempt that follows."""
    old = run.run.attempts()[-1]
    disturb()
    until(lambda: any(line["attempt"] > old for line in run.run.read_metrics()), Patience.RUN)
    return run.standstill(old + 1)


def to_world(run: KubeToy, world: int, disturb: Callable[[], object]) -> float:
    """The longest time between two steps from `disturb` until there is one of so many ranks."""
    count = len(run.run.read_metrics())
    disturb()
    until(lambda: run.world() == world, Patience.RUN)
    times = [line["time"] for line in run.run.read_metrics()][max(count - 1, 0) :]
    return max(b - a for a, b in itertools.pairwise(times))


def end(run: KubeToy) -> None:
    run.backend.cancel(run.run)
    run.finish()
    run.close()


def of_a_fixed_run(namespace: Namespace, kube: Cluster) -> Figures:
    """Evicted again and again, then the leader's node dies, and another's is cut off."""
    run = KubeToy(namespace, "count", "ranks", steps=1000000, resources={"nodes": 2, "cpus": 2})
    run.reach(20)
    results: Figures = {}
    for count in range(1, EVICTIONS + 1):
        seconds = to_next_step(run, lambda: namespace.kubectl("delete", "pod", "--wait=false", run.leader()))
        results[f"eviction {count} of the leader's pod"] = seconds
    results["the leader's node dies, a spare is there"] = to_next_step(run, lambda: kube.kill_node(run.node_of(run.leader())))
    kube.mend()
    other = next(p["spec"]["nodeName"] for p in namespace.pods() if _works(p) and p["metadata"]["name"] != run.leader())
    results["another node is cut off, a spare is there"] = to_next_step(run, lambda: kube.cut_node(other))
    kube.mend()
    end(run)
    return results


def of_one_pod(namespace: Namespace, kube: Cluster) -> Figures:
    """Standstill of a run of one pod whose node dies; Kubernetes alone notices."""
    run = KubeToy(namespace, steps=1000000)
    run.reach(20)
    results = {"the only pod's node dies (Kubernetes notices after 8 s here)": to_next_step(run, lambda: _kill(kube, run))}
    end(run)
    kube.mend()
    return results


def of_an_elastic_run(namespace: Namespace, kube: Cluster) -> Figures:
    """A node dies, a node returns, the user scales, the leader's node dies, and another leader's is cut off."""
    run = KubeToy(namespace, "count", "ranks", steps=1000000, resources={"nodes": "1..3", "cpus": 2})
    until(lambda: run.world() == 3, Patience.RUN)
    leader = run.node_of(run.leader())
    victim = next(p["spec"]["nodeName"] for p in namespace.pods() if p["spec"]["nodeName"] != leader)
    results = {
        "a node of 3 dies, on at 2": to_world(run, 2, lambda: kube.kill_node(victim)),
        "it returns, on at 3 (the others stand still)": to_world(run, 3, kube.mend),
        "scaled to 1": to_world(run, 1, lambda: run.run.request_nodes(1)),
        "scaled to 3": to_world(run, 3, lambda: run.run.request_nodes(3)),
        "the leader's node dies, on at 2": to_world(run, 2, lambda: _kill(kube, run)),
    }
    kube.mend()
    until(lambda: run.world() == 3, Patience.RUN)
    cut = to_world(run, 2, lambda: kube.cut_node(run.node_of(run.leader())))
    results["the leader's node is cut off, on at 2"] = cut
    end(run)
    kube.mend()
    return results


def in_a_queue(namespace: Namespace) -> Figures:
    """Preempted by a more urgent Job of Kueue's: from its end to the next step."""
    keys = {"queue": make_queue(namespace, 2), "queue_priority": f"{namespace.name}-low"}
    run = KubeToy(namespace, steps=1000000, profile=keys, resources={"nodes": 2})
    run.reach(20)
    urgent(namespace, "urgent", cpus=2, seconds=URGENT_SECONDS)
    until(lambda: run.run.outcome(1), Patience.RUN)
    until(lambda: any(p["metadata"]["name"].startswith("urgent") and _works(p) for p in namespace.pods()), Patience.RUN)
    namespace.kubectl("delete", "job", "urgent", "--wait=false")
    free = time.time()
    run.reach_attempt(2)
    first = min(line["time"] for line in run.run.read_metrics() if line["attempt"] == 2)
    end(run)
    drop_queue(namespace)
    return {"Kueue's quota is free again -> next step": first - free}


def _kill(kube: Cluster, run: KubeToy) -> None:
    kube.kill_node(run.node_of(run.leader()))


def _works(pod: dict[str, Any]) -> bool:
    """Return True if the pod runs and does not belong to a node that died and came back."""
    return pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


def main() -> None:
    """Bring a cluster up, measure, take it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="of disturbances")
    parser.add_argument("--pairs", type=int, default=3, help="of starts, on one pod and on two")
    arguments = parser.parse_args()
    measured: dict[str, list[float]] = {}
    with lab_cluster() as kube:
        start = contest(kube.namespace(), arguments.pairs)
        for _ in range(arguments.rounds):
            note(measured, in_a_queue(kube.namespace()))
            for disturb in (of_a_fixed_run, of_an_elastic_run, of_one_pod):
                note(measured, disturb(kube.namespace(), kube))
            kube.forget_namespaces()
    standstills = {name: {"median": statistics.median(seconds), "all": seconds} for name, seconds in measured.items()}
    print(json.dumps({"seconds to the first step": start, "standstill, seconds": standstills}, indent=1))


def note(measured: dict[str, list[float]], figures: Figures) -> None:
    """Keep what was measured, and tell whoever waits."""
    for name, seconds in figures.items():
        print(f"{seconds:6.1f} s  {name}", file=sys.stderr, flush=True)
        measured.setdefault(name, []).append(round(seconds, 2))


if __name__ == "__main__":
    main()
