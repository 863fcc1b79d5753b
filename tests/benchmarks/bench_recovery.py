"""Seconds from kill -9 of a rank or a node to the next completed step, and steps that are done again: two virtual nodes.

    python -m tests.benchmarks.bench_recovery [--kills 3] [--kill rank|node|first|cut] [--memory-every 1]

A real run on the local backend, killed again and again, on a quiet machine; with --memory-every a second one, which copies its
state to the memory of nodes. `first` is the node of rank 0, and `cut` stops a node's processes: no connection is closed, as if
its network was cut. Prints one JSON object.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset

SETTLE_STEPS = 20  # between two kills


def config(data: Path, memory_every: int | None = None, nodes: str = "2") -> PretrainConfig:
    """A run that lasts as long as the benchmark needs it."""
    return PretrainConfig.model_validate(
        {
            "data": str(data),
            "model": {"preset": "tiny"},
            "seq_len": 64,
            "steps": 100_000,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "checkpoint": {"every_steps": 10, "memory_every_steps": memory_every},
            "validation": {"every_steps": 100_000, "max_sequences": 2},
            "resources": {"nodes": nodes},
        }
    )


def newest_step(run: RunDir, before: float = float("inf")) -> int:
    """The newest step that was completed, before a moment."""
    lines = [line for line in run.read_metrics()[-200:] if "train/loss" in line and line["time"] < before]
    return max((int(line["step"]) for line in lines), default=0)


def event_after(run: RunDir, kind: str, moment: float) -> dict[str, Any]:
    """The first event of a kind after a moment; waits for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for event in run.read_events():
            if event["event"] == kind and event["time"] > moment:
                return event
        time.sleep(0.02)
    raise TimeoutError(f"no event {kind!r} within 120 s; see {run.path}")


def wait_for_both_nodes(run: RunDir) -> None:
    """Wait until the group has two nodes, and has completed some steps."""
    while [event["nodes"] for event in run.read_events() if event["event"] == "group_formed"][-1:] != [2]:
        time.sleep(0.05)
    formed = [event["time"] for event in run.read_events() if event["event"] == "group_formed"][-1]
    goal = event_after(run, "first_step", formed)["step"] + SETTLE_STEPS
    while newest_step(run) < goal:
        time.sleep(0.05)


def kill(run: RunDir, what: str) -> None:
    """Kill or stop the rank of the second node, or all processes of a node."""
    if what in ("rank", "stop"):
        os.kill(writers_of(run.log_dir(1) / "rank-1.log")[0].pid, signal.SIGKILL if what == "rank" else signal.SIGSTOP)
    else:
        node = 0 if what == "first" else 1
        agents = [agent["pid"] for agent in read_lines(run.attempt_dir(1) / "agents.jsonl") if agent["node"] == node]
        os.killpg(agents[-1], signal.SIGSTOP if what == "cut" else signal.SIGKILL)


def measure(run: RunDir, what: str) -> dict[str, Any]:
    """One kill: the phases of the standstill, seconds since the kill, and the steps that were done again."""
    wait_for_both_nodes(run)
    kill(run, what)
    killed = time.time()
    phases = {kind: event_after(run, kind, killed)["time"] - killed for kind in ("group_formed", "resumed", "first_step")}
    resumed = event_after(run, "resumed", killed)
    lost = newest_step(run, before=resumed["time"]) - resumed["step"]
    if what == "cut":
        kill(run, "node")
    return {**phases, "steps_lost": lost, "tier": resumed["tier"]}


def summary(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the kills of one run."""
    seconds, lost = [kill["first_step"] for kill in kills], [kill["steps_lost"] for kill in kills]
    return {
        "seconds_to_next_step": {"median": statistics.median(seconds), "worst": max(seconds)},
        "steps_lost": {"mean": statistics.mean(lost), "worst": max(lost)},
        "kills": kills,
    }


def main() -> None:
    """Kill, wait, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--kill", choices=["rank", "node", "first", "cut"], default="rank")
    parser.add_argument("--memory-every", type=int)
    arguments = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RUNS_VARIABLE] = f"{scratch}/runs"
        data = make_dataset(Path(scratch) / "data", num_documents=2000)
        for every in dict.fromkeys((None, arguments.memory_every)):
            run = submit("pretrain", config(data, every, "2" if arguments.kill == "rank" else "1..2"))
            event_after(run, "first_step", 0.0)
            kills = [measure(run, arguments.kill) for _ in range(arguments.kills)]
            run.request_cancel()
            event_after(run, "attempt_ended", 0.0)
            report["storage" if every is None else "memory"] = summary(kills)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
