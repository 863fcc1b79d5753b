"""Looks into live runs: stacks of many processes merged, the cost of a step that nobody looks into, ranks profiled and killed.

    python -m tests.benchmarks.bench_inspect [--stacks 10000] [--rounds 30] [--steps 10] [--ranks 4]

Prints one JSON object a row. `merge`: CPU seconds to read the agents' answers and to render their stacks, 40 frames each, at 50
places. `cost`: CPU of blocks of small training steps, by turns with and without the calls of the loop, after a profile was taken;
the median ratio. `ranks`: a run on this machine is profiled, and killed inside a second profile: steps of each trace, and whether
every step of the run was taken.
"""

import argparse
import gc
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import torch
from rich.console import Console
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.runs.inspect.stacks import merge_stacks, stacks_page
from ropewalk.jobs.training.loop.report.inspection import Inspection
from ropewalk.jobs.training.loop.update.state import TrainState
from tests.fakes.token_files import write_dataset
from tests.jobs.json_client import Client
from tests.patience import Patience, until

ROOT = Path(__file__).parents[2]
PLACES = 50
STEPS = 120  # of the run that is profiled


def measure_merge(number: int) -> dict[str, Any]:
    """Merge the stacks of many ranks, eight a node."""
    frames = [[f"call_{depth}", f"module_{depth}.py", depth] for depth in range(40)]

    def process(rank: int) -> dict[str, Any]:
        main = {"name": "MainThread", "main": True, "frames": [["wait", "x.py", rank % PLACES], *frames]}
        values = {"rank": rank, "is_rank": True, "pid": rank, "phase": "step", "step": 1, "state": "sleeping"}
        return {**values, "threads": [main, {**main, "name": "prefetch", "main": False}], "text": ""}

    answers = [json.dumps([process(rank) for rank in range(first, min(first + 8, number))]) for first in range(0, number, 8)]
    started = time.process_time()
    groups = merge_stacks([each for answer in answers for each in orjson.loads(answer)])
    Console(file=io.StringIO(), width=200).print(stacks_page(groups))
    return {"row": "merge", "stacks": number, "places": len(groups), "cpu_seconds": round(time.process_time() - started, 3)}


def measure_cost(rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Compare steps with and without the calls of the training loop, by turns."""
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())
    run = RunDir.create("cost", {"job": "pretrain", "config": {}}, folder)
    run.begin_attempt()
    inspection = Inspection(
        JobContext(run=run, attempt=1, stop_flag=folder / "stop"), TrainState(model, optimizer), torch.device("cpu")
    )
    batch, taken = torch.randn(256, 512), 0

    def block(*, watched: bool) -> float:
        nonlocal taken
        started = time.process_time()
        for _ in range(steps):
            taken += 1
            if watched:
                inspection.begin_step(taken)
            model(batch).square().mean().backward()
            if watched:
                inspection.end_backward(taken)
                inspection.agree(inspection.requested())
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - started

    inspection.agree(1003)  # three steps are profiled first
    block(watched=True)
    until((run.attempt_dir(1) / "inspections/0001/rank-0.json").exists, Patience.STEP)
    ratios = []
    for number in range(rounds):
        first = block(watched=number % 2 == 0)
        second = block(watched=number % 2 == 1)
        ratios.append(first / second if number % 2 == 0 else second / first)
    started = time.process_time()
    for _ in range(10_000):
        inspection.begin_step(taken)
        inspection.end_backward(taken)
        inspection.agree(inspection.requested())
    microseconds = (time.process_time() - started) * 100
    overhead = round(statistics.median(ratios) - 1, 5)
    return {"row": "cost", "rounds": rounds, "overhead": overhead, "microseconds_a_step": round(microseconds, 2)}


def measure_ranks(ranks: int, folder: Path) -> dict[str, Any]:
    """Profile the ranks of a run, and kill one of them inside a second profile.

    Returns whether all traces have the same steps, and how many steps of the run are missing at its end.
    """
    os.environ.update(ROPEWALK_RUNS=str(folder / "runs"), PYTHONPATH=str(ROOT), WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    write_dataset(folder / "data", [50_000], [600])
    (folder / "data/tokenizer").mkdir()
    (folder / "data/tokenizer/tokenizer.json").write_text("{}")
    client = Client(folder)
    keys = (
        "data=data",
        "model.preset=tiny",
        "seq_len=16",
        f"steps={STEPS}",
        f"batch.global_batch={ranks}",
        "batch.micro_batch=1",
    )
    started = client("submit", "pretrain", *keys, f"resources.ranks_per_node={ranks}", "checkpoint.every_steps=20")
    run = RunDir(Path(started["directory"]))
    until(lambda: any(line["step"] > 2 for line in run.read_metrics()), Patience.CLUSTER)
    profile = client("profile", run.id, "--steps", "3")
    stacks = client("stacks", run.id)
    memory = client("memory", run.id)
    command = [sys.executable, "-m", "ropewalk.jobs.cli", "profile", run.id, "--steps", "50", "--json"]
    second = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = [process["pid"] for group in stacks["groups"] for process in group["processes"] if process["is_rank"]]
    request = run.attempt_dir(1) / "inspections/0004"
    until(request.exists, Patience.START)
    time.sleep(2.0)
    os.kill(pids[-1], signal.SIGKILL)
    outcome = client("wait", run.id)
    second.wait()
    lost = [event for event in run.read_events() if event["event"] == "rank_lost"]
    steps = {line["step"] for line in run.read_metrics() if "train/loss" in line}
    return {
        "row": "ranks",
        "same_steps": len({tuple(each) for each in profile["steps"].values()}) == 1,
        "traces": len(profile["steps"]),
        "stacks": sum(len(group["processes"]) for group in stacks["groups"]),
        "memories": len(memory["ranks"]),
        "killed": len(lost),
        "answered_second": [path.name for path in sorted(request.glob("rank-?.json")) if read_json(path)],
        "state": outcome["state"],
        "steps_missing": len(set(range(1, STEPS + 1)) - steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--ranks", type=int, default=4, help="0: leave out")
    arguments = parser.parse_args()
    gc.set_threshold(100_000)  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_merge(arguments.stacks)), flush=True)
        print(json.dumps(measure_cost(arguments.rounds, arguments.steps, Path(folder))), flush=True)
        if arguments.ranks:
            print(json.dumps(measure_ranks(arguments.ranks, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
