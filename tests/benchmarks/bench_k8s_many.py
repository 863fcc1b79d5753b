"""A thousand runs on nodes simulated by kwok: time of submit, ps and cancel, and list calls of ps.

    python -m tests.benchmarks.bench_k8s_many [--runs 1000] [--nodes 20]      as root, where the lab is (see tests/k8s/lab.py)

Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.fleet import Fleet, add_nodes
from tests.k8s.lab import lab_cluster
from tests.patience import Patience, until

ROUNDS = 5


def main() -> None:
    """Bring a cluster up, measure, take it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=20)
    arguments = parser.parse_args()
    os.environ["KUBE_LAB_NODE_GRACE"] = "120s"  # kwok's beats come late where a thousand pods start on two cores
    with lab_cluster() as cluster:
        add_nodes(cluster, arguments.nodes)
        namespace = cluster.namespace()
        print(json.dumps({"runs": arguments.runs, "seconds": measure(cluster, namespace, arguments.runs)}, indent=1))


def measure(cluster: Cluster, namespace: Namespace, count: int) -> dict[str, Any]:
    """Seconds of everything, in order."""
    fleet = Fleet(namespace, count)
    results: dict[str, Any] = {"submit": round(fleet.submit(), 2)}
    until(lambda: fleet.words(fleet.look()[1]) == {"RUNNING": count}, Patience.CLUSTER)
    looks = [fleet.look() for _ in range(ROUNDS)]
    results |= {"states": median([seconds for seconds, _, _ in looks]), "list calls": looks[-1][2]}
    results |= {"ropewalk ps": median([ps(namespace) for _ in range(ROUNDS)]), "cancel": round(fleet.cancel(), 2)}
    before = time.monotonic()
    until(lambda: not namespace.items("Job"), Patience.CLUSTER)
    assert fleet.words(fleet.look()[1]) == {"CANCELLED": count}
    return {**results, "until nothing is left": round(time.monotonic() - before, 1)}


def median(seconds: list[float]) -> float:
    """In hundredths."""
    return round(statistics.median(seconds), 2)


def ps(namespace: Namespace) -> float:
    """Seconds that the command takes, from its start to its end."""
    clusters = namespace.runs.parent / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "k8s", **namespace.options()}}))
    ropewalk = Path(sys.executable).with_name("ropewalk")
    environment = {"ROPEWALK_CLUSTERS": str(clusters), "ROPEWALK_RUNS": str(namespace.runs), "PATH": "/usr/bin:/bin"}
    before = time.monotonic()
    done = subprocess.run([ropewalk, "ps", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert '"state": "RUNNING"' in done.stdout
    return time.monotonic() - before


if __name__ == "__main__":
    main()
