"""Standstills of a run that is scaled down and up again and again, and steps that are done again: virtual nodes.

    python -m tests.benchmarks.bench_resize [--resizes 20] [--seconds 60] [--nodes 3..4] [--memory-every 1]

A real run on the local backend, on a quiet machine. A standstill is the time between two completed steps around a change of a
group, minus a usual step. The imports of a node that joins are not part of it: the others go on meanwhile. Prints JSON.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.config import NodeRange
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.jobs.runs.submit.submit import submit
from tests.benchmarks.bench_recovery import config, event_after
from tests.jobs.corpus import make_dataset

PHASES = ("stopped", "group_formed", "resumed", "first_step")


def resize(run: RunDir, nodes: int) -> float:
    """Request a number of nodes, wait until a group of them has completed a step, and return when it was requested."""
    requested = time.time()
    run.request_nodes(nodes)
    while (formed := event_after(run, "group_formed", requested))["nodes"] != nodes:
        requested = formed["time"]
    event_after(run, "first_step", formed["time"])
    return requested


def standstill(run: RunDir, since: float) -> dict[str, Any]:
    """The longest time without a step after a moment, by phases from the last step before it."""
    steps = [line for line in run.read_metrics() if "train/loss" in line]
    pairs = [(a, b) for a, b in itertools.pairwise(steps) if b["time"] > since and b["step"] <= a["step"] + 1]
    last, following = max(pairs, key=lambda pair: pair[1]["time"] - pair[0]["time"])
    usual = statistics.median(b["time"] - a["time"] for a, b in pairs)
    events = [event for event in run.read_events() if last["time"] < event["time"]]
    phases = {kind: next((e["time"] - last["time"] for e in events if e["event"] == kind), None) for kind in PHASES}
    seconds = following["time"] - last["time"] - usual
    return {"seconds": seconds, "usual_step": usual, **phases, "steps_again": last["step"] + 1 - following["step"]}


def main() -> None:
    """Scale down and up in turns, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resizes", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="between two requests")
    parser.add_argument("--nodes", default="3..4")
    parser.add_argument("--memory-every", type=int)
    arguments = parser.parse_args()
    nodes = NodeRange.model_validate(NodeRange.parse(arguments.nodes))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RUNS_VARIABLE] = f"{scratch}/runs"
        data = make_dataset(Path(scratch) / "data", num_documents=2000)
        run = submit("pretrain", config(data, arguments.memory_every, arguments.nodes))
        event_after(run, "first_step", 0.0)
        resizes = []
        for number in range(arguments.resizes):
            time.sleep(arguments.seconds)
            wanted = nodes.most if number % 2 else nodes.least
            since = resize(run, wanted)
            time.sleep(2.0)
            resizes.append({"nodes": wanted, **standstill(run, since)})
        run.request_cancel()
        event_after(run, "attempt_ended", 0.0)
        whole = run.read_metrics()[-1]["time"] - run.read_metrics()[0]["time"]
    seconds = [each["seconds"] for each in resizes]
    share, again = sum(seconds) / whole, sum(each["steps_again"] for each in resizes)
    report = {"share_of_wall_clock": share, "median": statistics.median(seconds), "worst": max(seconds), "steps_again": again}
    print(json.dumps({**report, "resizes": resizes}, indent=1))


if __name__ == "__main__":
    main()
