"""A thousand runs on nodes that kwok plays: how long submit, ps and cancel take, and how many list calls ps makes.

Usage: python -m tests.benchmarks.bench_k8s_many [RUNS=1000] [NODES=20]     as root, where the lab is
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.k8s.cluster import Namespace
from tests.k8s.fleet import Fleet, add_nodes
from tests.k8s.lab import lab_cluster
from tests.slurm.conftest import until


def main() -> None:
    """Print one line a figure."""
    count, nodes = [int(word) for word in sys.argv[1:]] + [1000, 20][len(sys.argv) - 1 :]
    os.environ["KUBE_LAB_NODE_GRACE"] = "120s"  # kwok's beats come late where a thousand pods start on two cores
    with lab_cluster() as cluster:
        add_nodes(cluster, nodes)
        namespace = cluster.namespace()
        fleet = Fleet(namespace, count)
        print(f"submit {count} runs: {fleet.submit():.1f} s", flush=True)
        seconds, states, calls = fleet.look()
        print(f"states while they start: {seconds:.2f} s, {fleet.words(states)}, list calls: {calls}", flush=True)
        until(lambda: fleet.words(fleet.look()[1]) == {"RUNNING": count}, 600)
        seconds, states, calls = fleet.look()
        print(f"states while they run: {seconds:.2f} s, {fleet.words(states)}, list calls: {calls}", flush=True)
        print(f"`ropewalk ps`: {ps(namespace):.2f} s", flush=True)
        print(f"cancel: {fleet.cancel():.1f} s", flush=True)
        before = time.monotonic()
        until(lambda: not cluster.items("jobs", "--namespace", namespace.name), 600)
        print(f"until nothing is left: {time.monotonic() - before:.1f} s more, {fleet.words(fleet.look()[1])}", flush=True)


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
