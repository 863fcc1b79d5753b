"""Seconds of the commands that read runs: one run with a week of samples of 64 nodes, and a root with 100,000 runs.

    python -m tests.benchmarks.bench_many_files [--nodes 64] [--days 7] [--runs 100000] [--folder DIR]

Prints one JSON object a row, wall clock and CPU with the start of the process. `--folder` keeps the files for the next call.
The first `ps` has no cache of outcomes; the files themselves are in the page cache, as they were just written.

Measured: 2026-11-29 on a busy machine, where wall clock is several times the CPU. A command's start alone takes 0.3 s of CPU.
Before: `why` 13.9 s, `ps` 7.7 s. A listing again reads names, the cache and the list of later attempts, no runs that have ended.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ropewalk.cluster.agent.monitor import DENSE_SECONDS, INTERVAL_SECONDS, SPARSE_SECONDS, sample
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines, json_text
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import metric_line

DAY = 86400.0
STEP_SECONDS, CHECKPOINT_SECONDS = 2.0, 900.0
GPUS = 8
SHARING = 1000  # runs whose unchanging files are links to the same file
OPEN_RUNS = 20
REPEATS = 5


def long_run(root: Path, num_nodes: int, days: float) -> str:
    """Make a failed run with all samples that its nodes have written, and return its id."""
    run = RunDir.create("long", {"job": "pretrain", "cluster": "local", "config": {"steps": 10**6}, "resources": {}}, root)
    run.begin_attempt(handle="local:1")
    now = time.time()
    gpus = {f"gpu{gpu}_{key}": 71.5 for gpu in range(GPUS) for key in ("percent", "memory_gib")}
    values = {**sample(0), **gpus, "node": "NODE"}
    dense = min(days * DAY, DENSE_SECONDS)
    ages = [k * INTERVAL_SECONDS for k in range(int(dense / INTERVAL_SECONDS))]
    ages += [dense + k * SPARSE_SECONDS for k in range(int((days * DAY - dense) / SPARSE_SECONDS))]
    block = "".join(json.dumps({**values, "time": now - days * DAY + age}) + "\n" for age in ages)
    for node in range(num_nodes):
        (run.attempt_dir(1) / f"nodes/node-{node}.jsonl").write_text(block.replace('"NODE"', str(node)))
    figures = {f"train/{key}": random.random() for key in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu")}
    append_lines(run.metrics, [metric_line(1, step, figures) for step in range(1, int(days * DAY / STEP_SECONDS))])
    for event in range(int(days * DAY / CHECKPOINT_SECONDS)):
        run.event("checkpoint", attempt=1, step=1 + int(event * CHECKPOINT_SECONDS / STEP_SECONDS))
    run.write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="rank 3: RuntimeError: boom"))
    return run.id


def many_runs(root: Path, num_runs: int) -> None:
    """Make runs that have ended, and a few between them that have not."""
    root.mkdir(parents=True)
    config = {"steps": 100, "data": "data", "name": "many", "batch": {"global_batch": 32}, "optim": {"lr": 3e-4}}
    record = {"job": "pretrain", "cluster": "local", "config": config, "resources": {"nodes": 1}, "created": time.time()}
    begun = RunDir.create("many", record, root)
    begun.begin_attempt(handle="local:1")
    begun.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    append_lines(begun.metrics, [metric_line(1, step, {"train/loss": 1.0}) for step in range(1, 101)])
    folders = [path.relative_to(begun.path) for path in sorted(begun.path.rglob("*")) if path.is_dir()]
    files = {path.relative_to(begun.path): path.read_bytes() for path in sorted(begun.path.rglob("*")) if path.is_file()}
    first = time.time() - 10 * num_runs
    shared = begun.path
    for number in range(num_runs):
        date = time.strftime("%Y%m%d-%H%M%S", time.localtime(first + 10 * number))
        path = root / f"many-{date}-{number:04x}"
        path.mkdir()
        for folder in folders:
            (path / folder).mkdir()
        is_open = number % (num_runs // OPEN_RUNS or 1) == 0
        shared = path if number % SHARING == 1 else shared
        for file, content in files.items():
            if is_open and file.name in ("outcome.json", "ended"):
                continue
            if file.name != "run.yaml" and not is_open and shared != path:
                os.link(shared / file, path / file)
            else:
                (path / file).write_bytes(content)
    (root / "made").write_text(json_text(num_runs))


def main() -> None:
    """Make the runs unless they exist, and time each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as cache:
        home = options.folder or Path(temporary)
        long, many = home / "long", home / "many"
        if not (long / "run").exists():
            name = long_run(long, options.nodes, options.days)
            (long / "run").write_text(name)
        if not (many / "made").exists():
            many_runs(many, options.runs)
        run = (long / "run").read_text()
        middle = sorted(path.name for path in many.glob("many-*"))[options.runs // 2]

        def seconds(root: Path, *arguments: str) -> tuple[float, float]:
            environment = {**os.environ, "ROPEWALK_RUNS": str(root), "ROPEWALK_CACHE": cache, "ROPEWALK_CLUSTERS": "/dev/null"}
            started, before = time.perf_counter(), os.times()
            command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            assert run in done.stdout or "many-" in done.stdout, done.stdout
            taken, after = time.perf_counter() - started, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            return round(taken, 3), round(cpu, 3)

        listings = [(many, "ps"), (many, "ps"), (many, "why", "latest"), (many, "why", middle[:-2])]
        rows = [(long, "why", run), (long, "show", run), *listings]
        for number, (root, *arguments) in enumerate(rows):
            first = rows.index((root, *arguments)) == number and arguments == ["ps"]
            wall, cpu = min(seconds(root, *arguments) for _ in range(1 if first else REPEATS))
            label = " ".join([*arguments, *(["for the first time"] if first else [])])
            print(json.dumps({"command": label, "wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
