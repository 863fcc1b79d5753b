"""Milliseconds to submit one run against raw sbatch and submitit, and seconds for a thousand as arrays, on a test cluster.

    python -m tests.benchmarks.bench_slurm [--rounds 20] [--runs 1000] [--folder DIR]

Prints one JSON object. Imports are done before. A thousand runs go through the command, process start included. DIR is where
runs live: a disk, or /dev/shm.

Measured: The time of a submission is that of the disk under the runs; on /dev/shm submissions are the fastest.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, permutations
from pathlib import Path

import submitit
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from tests.fakes.token_files import write_dataset
from tests.slurm.toy import SlurmToy

ROOT = Path(__file__).parents[2]
HELD = {"sbatch": {"hold": True}}


def milliseconds(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def one_run(folder: Path, rounds: int) -> dict[str, float]:
    """Medians of all three ways. The two that are compared take turns in both orders; submitit, whose 0.2 s leave cold caches to
    whoever comes next, comes after them.
    """
    executor = submitit.AutoExecutor(folder / "submitit", cluster="slurm")
    executor.update_parameters(slurm_additional_parameters={"hold": True}, timeout_min=1)
    toys = [SlurmToy(folder / "runs", "tick", "process", profile=HELD, submit=False) for _ in range(rounds + 1)]
    last = toys.pop()
    last.backend.submit(last.run, last.resources)
    arguments = ["sbatch", "--parsable", f"--chdir={last.run.path}", str(last.run.attempt_dir(1) / "job.sbatch")]
    ways: dict[str, Callable[[SlurmToy], object]] = {
        "ropewalk": lambda toy: toy.backend.submit(toy.run, toy.resources),
        "sbatch": lambda _: subprocess.run(arguments, capture_output=True, check=True),
        "submitit": lambda _: executor.submit(os.getpid),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    rounds_of_two = [(toy, order) for toy, order in zip(toys, cycle(permutations(("ropewalk", "sbatch"))), strict=False)]
    for toy, order in [*rounds_of_two, *((toy, ("submitit",)) for toy in toys)]:
        for name in order:
            taken[name].append(milliseconds(lambda way=ways[name], toy=toy: way(toy)))  # type: ignore[misc]
    results = {name: round(statistics.median(values), 1) for name, values in taken.items()}
    return {**results, "times sbatch": round(results["ropewalk"] / results["sbatch"], 2)}


def queued() -> list[str]:
    """Ids of all jobs in the queue, those of arrays element by element."""
    listing = ["squeue", "--noheader", "--array", "--format=%i"]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()


def many_runs(folder: Path, runs: int) -> dict[str, float]:
    """Seconds to submit them as arrays, to list them and to cancel them, each by the command. Each has one job."""
    (folder / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", **HELD}}))
    write_dataset(folder / "data", [5000], [600])
    variables = {
        "ROPEWALK_RUNS": str(folder / "many"),
        "ROPEWALK_CLUSTERS": str(folder / "clusters.yaml"),
        "PYTHONPATH": str(ROOT),
    }

    def ropewalk(*arguments: str) -> tuple[float, list[str]]:
        started = time.perf_counter()
        command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments]
        done = subprocess.run(command, env={**os.environ, **variables}, cwd=folder, check=True, capture_output=True, text=True)
        return round(time.perf_counter() - started, 2), done.stdout.split()

    job = ("pretrain", "data=data", "steps=3", "seq_len=16", "--on", "lab")
    before = len(queued())
    submitted, ids = ropewalk("submit", *job, "--each", f"seed=1..{runs}")
    jobs = queued()
    with_their_own = {job_id(RunDir(folder / "many" / name)) for name in ids} & set(jobs)
    assert len(ids) == len(with_their_own) == runs == len(jobs) - before
    listed = min(ropewalk("ps")[0] for _ in range(3))
    return {"submit": submitted, "ps": listed, "cancel": ropewalk("cancel", *ids)[0]}


def main() -> None:
    """Bring a cluster up, measure, take it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    lab, folder = Lab(Path(tempfile.mkdtemp(prefix="s"))), Path(tempfile.mkdtemp(dir=options.folder))
    try:
        lab.up(LabSettings(nodes=2, extra={"MaxArraySize": "1001"}))  # Slurm's default
        os.environ.update(lab.env)
        figures = {"one run, ms": one_run(folder, options.rounds), f"{options.runs} runs, s": many_runs(folder, options.runs)}
    finally:
        lab.down()
        shutil.rmtree(lab.folder, ignore_errors=True)
        shutil.rmtree(folder)
    print(json.dumps({"folder": str(options.folder), **figures}))


if __name__ == "__main__":
    main()
