"""Order and start that `why` predicts for the jobs of a queue with fair share, against what Slurm then does.

    python -m tests.benchmarks.bench_queue_order [--jobs 200] [--nodes 40] [--history 10] [--cpus 1]

Prints one JSON object. A cluster with accounting has three users with shares of 50, 30 and 20, whose past use is HISTORY times
what the queue will use. While another job fills the cluster, they submit jobs of 1 to 3 nodes and 1 or 2 minutes, which run to
their limits. Once a back-fill cycle has seen them, the predictions of `why` are read: how many jobs are before each, and
when it may start. Of every two jobs the one that `why` put first should not start later; back-fill lets smaller ones pass.

With CPUS above 1 the jobs take 1 to 3 CPUs of nodes that they share. Slurm's plan, which `why` shows, is of whole nodes.

Needs root (sbatch --uid), MariaDB and slurmdbd. 200 jobs take a quarter of an hour, in which the machine is nearly idle.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.lab.config import LabSettings
from ropewalk.slurm.status.waiting import jobs_before
from ropewalk.slurm.times import FOREVER, seconds_of
from tests.slurm.accounting import AccountingLab

SHARES = {"daemon": 50, "games": 30, "nobody": 20}  # users that every machine has
CYCLE_SECONDS = 30  # Slurm's default; also the resolution of its plan, by default a minute
HISTORY_SECONDS = 10
SPARE_SECONDS = 1  # a job ends this long before its limit, which Slurm enforces only twice a minute
HALF_HOUR = 1800.0


class Request(NamedTuple):
    """A job of the queue."""

    user: str
    size: int  # nodes, or CPUs of shared nodes
    minutes: int


class Prediction(NamedTuple):
    """Prediction of `why` for a job."""

    before: int
    start: float


def settings(nodes: int, cpus: int, weight: float) -> LabSettings:
    """Return the cluster's settings; jobs of the partition `past` count `weight` times."""
    extra = {
        "PriorityType": "priority/multifactor",
        "PriorityWeightFairshare": "100000",
        "PriorityWeightAge": "1000",
        "PriorityCalcPeriod": "1",
        "SchedulerParameters": f"bf_interval={CYCLE_SECONDS},bf_resolution={CYCLE_SECONDS},sched_interval=1,sched_min_interval=0",
        "PartitionName": f"past Nodes=ALL MaxTime=INFINITE TRESBillingWeights=CPU={weight:.0f}",
    }
    return LabSettings(nodes=nodes, cpus=cpus, users=tuple(SHARES), extra=extra)


def submit(lab: AccountingLab, user: str, *options: str, seconds: float) -> str:
    """Submit a job that sleeps, as a user; return its id."""
    common = ("--parsable", "--output=/dev/null", "--chdir=/", f"--uid={user}", f"--wrap=sleep {seconds:g}")
    return lab.command("sbatch", *common, *options).strip()


def wait_for(slurm: Slurm, jobs: Sequence[str], done: Sequence[str], seconds: float) -> None:
    """Wait until all jobs have left the given states. Raises TimeoutError."""
    deadline, wanted = time.monotonic() + seconds, set(jobs)
    while any(job.id in wanted and job.state in done for job in slurm.queue()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are still {' or '.join(done)} after {seconds:.0f} s")
        time.sleep(2)


def make_history(lab: AccountingLab, slurm: Slurm) -> None:
    """Let every user use two nodes of the partition `past` for some seconds."""
    options = ("--partition=past", "--nodes=2", "--exclusive", "--time=1")
    jobs = [submit(lab, user, *options, seconds=HISTORY_SECONDS) for user in SHARES]
    wait_for(slurm, jobs, ("PENDING", "RUNNING", "COMPLETING"), 120)


def predict(slurm: Slurm, jobs: Sequence[str]) -> dict[str, Prediction]:
    """Ask for all jobs what `why` says."""
    starts = {job.id: seconds_of(job.start) for job in slurm.queue("--states=PENDING")}
    return {job: Prediction(len(jobs_before(slurm, slurm.job_details(job))), starts[job]) for job in jobs}


def judge(predictions: dict[str, Prediction], starts: dict[str, float]) -> dict[str, float]:
    """Compare what was said with what happened."""
    pairs = [sorted(pair, key=lambda job: predictions[job].before) for pair in combinations(predictions, 2)]
    by_start = [sorted(pair, key=lambda job: predictions[job].start) for pair in combinations(predictions, 2)]
    planned = [pair for pair in by_start if predictions[pair[0]].start < predictions[pair[1]].start]
    planned_jobs = [job for job, prediction in predictions.items() if prediction.start != FOREVER]
    errors = sorted(abs(starts[job] - predictions[job].start) for job in planned_jobs)
    return {
        "jobs": len(predictions),
        "pairs in the order of `why`, %": round(100 * statistics.fmean(starts[a] <= starts[b] for a, b in pairs), 2),
        "pairs in the order of the planned starts, %": round(
            100 * statistics.fmean(starts[a] <= starts[b] for a, b in planned), 2
        ),
        "jobs with a planned start": len(planned_jobs),
        "median error of the start, s": statistics.median(errors),
        "90th percentile of it, s": errors[int(len(errors) * 0.9)],
        "back-fill cycle, s": CYCLE_SECONDS,
    }


def measure(jobs: int, nodes: int, cpus: int, history: float) -> dict[str, float]:
    """Bring a cluster up, fill its queue, let it run, take it down."""
    draw = random.Random(0)
    requests = [Request(draw.choice(list(SHARES)), draw.randint(1, 3), draw.choice([1, 1, 2])) for _ in range(jobs)]
    used = sum(request.size * request.minutes * 60 for request in requests)
    weight = history * used / (len(SHARES) * 2 * cpus * HISTORY_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="s"))
    folder.chmod(0o755)
    lab, slurm = AccountingLab(folder), Slurm()
    try:
        lab.up(settings(nodes, cpus, weight))
        os.environ.update(lab.env)
        for user, share in SHARES.items():
            lab.command("sacctmgr", "-i", "modify", "user", user, "set", f"fairshare={share}")
        if weight:
            make_history(lab, slurm)
        full = submit(lab, "root", f"--nodes={nodes}", "--exclusive", "--time=4", "--nice=-1000", seconds=240 - SPARE_SECONDS)
        unit = "--nodes" if cpus == 1 else "--cpus-per-task"
        ids = [
            submit(lab, user, f"{unit}={size}", f"--time={minutes}", seconds=minutes * 60 - SPARE_SECONDS)
            for user, size, minutes in requests
        ]
        time.sleep(60 + CYCLE_SECONDS)  # fair share is computed once a minute
        predictions = predict(slurm, ids)
        assert any(job.id == full and job.state == "RUNNING" for job in slurm.queue()), "submitting took too long"
        wait_for(slurm, ids, ("PENDING", "RUNNING", "COMPLETING"), HALF_HOUR)
        starts = {job.id: seconds_of(job.start) for job in slurm.queue() if job.id in predictions}
    finally:
        lab.down()
        shutil.rmtree(folder, ignore_errors=True)
    return judge(predictions, starts)


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--history", type=float, default=10.0, help="past use, in multiples of what the queue will use")
    parser.add_argument("--cpus", type=int, default=1, help="of a node")
    options = parser.parse_args()
    print(json.dumps(measure(options.jobs, options.nodes, options.cpus, options.history)))


if __name__ == "__main__":
    main()
