"""Standstill on real Slurm, from a disturbance to the next new step.

Usage: python -m tests.benchmarks.bench_slurm_recovery [ROUNDS]
A counter of 20 steps a second with a checkpoint each, so that what is measured is the machinery.

Measured: Four nodes, on a Slurm that is configured to requeue slowly. Slurm itself takes 25 s to notice that the first node
has died. No step was redone.
"""

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT
from tests.slurm.toy import SlurmToy


def to_next_step(run: SlurmToy, disturb: Callable[[], object]) -> float:
    """Seconds without a new step after `disturb`, which ends the attempt: from its last step to the next attempt's first."""
    old = run.run.attempts()[-1]
    disturb()
    first = until(lambda: next((m["time"] for m in run.run.read_metrics() if m["attempt"] > old), 0.0), Patience.CLUSTER)
    return float(first - max(m["time"] for m in run.run.read_metrics() if m["attempt"] <= old))


def to_world(run: SlurmToy, world: int, disturb: Callable[[], object]) -> float:
    """Seconds from `disturb` to the first step of `world` ranks."""
    began = time.time()
    disturb()
    result = until(
        lambda: next((m["time"] for m in run.run.read_metrics() if m["time"] > began and m["world"] == world), 0.0),
        Patience.CLUSTER,
    )
    return float(result - began)


def of_a_fixed_run(lab: Lab, root: Path) -> dict[str, float]:
    """Requeue and preemption of two nodes."""
    run = SlurmToy(root, profile={"partition": "main", "exclusive": True}, resources={"nodes": 2}, steps=100000)
    run.reach(20)
    results = {"scontrol requeue": to_next_step(run, lambda: subprocess.run(["scontrol", "requeue", run.job], check=True))}
    run.reach(run.steps()[-1] + 20)
    high = ["sbatch", "--parsable", "-phigh", f"-N{len(lab.nodes)}", "--exclusive", "-o/dev/null", "--wrap=true"]
    results["preemption (the other job runs 0 s)"] = to_next_step(
        run, lambda: subprocess.run(high, check=True, capture_output=True)
    )
    run.backend.cancel(run.run)
    run.finish()
    return results


def of_an_elastic_run(lab: Lab, root: Path) -> dict[str, float]:
    """A node dies, a node returns, the user scales, the first node dies."""
    run = SlurmToy(root, resources={"nodes": "1..4"}, steps=1000000)
    until(lambda: run.world() == 4, Patience.RUN)
    victim = run.host_of(2)
    results = {"a node of 4 dies, on at 3": to_world(run, 3, lambda: lab.kill_node(victim))}
    until(lambda: run.events("node_lost"), Patience.RUN)
    joined = len(run.run.read_metrics())
    lab.start_node(victim)
    until(lambda: run.world() == 4, Patience.RUN)
    results["it returns, on at 4 (the others stand still)"] = longest_gap(run, joined)
    request = len(run.run.read_metrics())
    run.run.request_nodes(2)
    until(lambda: run.world() == 2, Patience.RUN)
    results["scaled to 2"] = longest_gap(run, request)
    first = run.host_of(0)
    results["the first node dies, requeued"] = to_next_step(run, lambda: lab.kill_node(first))
    run.backend.cancel(run.run)
    run.finish()
    return results


def longest_gap(run: SlurmToy, since: int) -> float:
    """Seconds between two steps in a row, at most, from a line of the metrics on."""
    times = [m["time"] for m in run.run.read_metrics()][max(since - 1, 0) :]
    return max(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    """Print medians over the rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    os.environ["PYTHONPATH"] = str(ROOT)
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for measure in (of_a_fixed_run, of_an_elastic_run):
            folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
            folder.chmod(0o755)
            lab = Lab(folder)
            try:
                lab.up(LabSettings(nodes=4 if measure is of_an_elastic_run else 2, slow_requeue=True))
                os.environ["SLURM_CONF"] = lab.env["SLURM_CONF"]
                for name, seconds in measure(lab, folder / "runs").items():
                    figures.setdefault(name, []).append(seconds)
            finally:
                lab.down()
                shutil.rmtree(folder, ignore_errors=True)
    for name, seconds in figures.items():
        print(f"{name:48} median {statistics.median(seconds):6.1f} s   worst {max(seconds):6.1f} s   of {len(seconds)}")


if __name__ == "__main__":
    main()
