"""Seconds from kill -9 of one rank to the next completed step: two virtual nodes of one rank, run on a quiet machine.

    python -m tests.benchmarks.bench_recovery [--kills 3]

A real run on the local backend, killed again and again. Prints one JSON object.
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
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset

SETTLE_STEPS = 20  # between two kills


def config(data: Path) -> PretrainConfig:
    """A run that lasts as long as the benchmark needs it."""
    return PretrainConfig.model_validate(
        {
            "data": str(data),
            "model": {"preset": "tiny"},
            "seq_len": 64,
            "steps": 100_000,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 100_000, "max_sequences": 2},
            "resources": {"nodes": 2},
        }
    )


def newest_step(run: RunDir) -> int:
    """The newest step that the group has completed."""
    return max((int(line["step"]) for line in run.read_metrics()[-5:] if "train/loss" in line), default=0)


def event_after(run: RunDir, kind: str, moment: float) -> dict[str, Any]:
    """The first event of a kind after a moment; waits for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for event in run.read_events():
            if event["event"] == kind and event["time"] > moment:
                return event
        time.sleep(0.02)
    raise TimeoutError(f"no event {kind!r} within 120 s; see {run.path}")


def measure(run: RunDir) -> dict[str, float]:
    """One kill: the phases of the standstill, seconds since the kill."""
    goal = newest_step(run) + SETTLE_STEPS
    while newest_step(run) < goal:
        time.sleep(0.05)
    os.kill(writers_of(run.log_dir(1) / "rank-1.log")[0].pid, signal.SIGKILL)
    killed = time.time()
    return {kind: event_after(run, kind, killed)["time"] - killed for kind in ("rank_lost", "group_formed", "first_step")}


def main() -> None:
    """Kill, wait, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RUNS_VARIABLE] = f"{scratch}/runs"
        run = submit("pretrain", config(make_dataset(Path(scratch) / "data", num_documents=2000)))
        event_after(run, "first_step", 0.0)
        kills = [measure(run) for _ in range(arguments.kills)]
        run.request_cancel()
        event_after(run, "attempt_ended", 0.0)
    seconds = [kill["first_step"] for kill in kills]
    report = {"seconds_to_next_step": {"median": statistics.median(seconds), "worst": max(seconds)}, "kills": kills}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
