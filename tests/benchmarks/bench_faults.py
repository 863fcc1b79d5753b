"""Steps of a run that one random fault after the other disturbs, against those of an undisturbed run: two virtual nodes.

    python -m tests.benchmarks.bench_faults [--faults 60] [--seconds 60] [--memory-every 10]

Of ten faults six kill a rank, two stop one for ever, and two kill a node, in random order, one every `--seconds`. What a fault
costs are the seconds until the next one, minus a usual step for each step that was completed for the first time. A usual step is
that of the second half of these seconds. Prints one JSON object: the cost by kind, the share of the undisturbed steps that the
run made, and the share that the same costs leave at one fault a minute.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.jobs.runs.submit.submit import submit
from tests.benchmarks.bench_recovery import config, event_after, kill, wait_for_both_nodes
from tests.jobs.corpus import make_dataset

KINDS = ("rank",) * 6 + ("stop",) * 2 + ("node",) * 2


def completed(run: RunDir, moment: float) -> int:
    """The newest step that was completed before a moment."""
    return max(int(line["step"]) for line in run.read_metrics() if "train/loss" in line and line["time"] <= moment)


def disturb(run: RunDir, faults: int, seconds: float) -> list[dict[str, Any]]:
    """Inject faults, and return what each cost."""
    draw, costs, kinds = random.Random(faults), [], list[str]()
    wait_for_both_nodes(run)
    for _ in range(faults):
        kinds = kinds or draw.sample(KINDS, len(KINDS))
        kind, began = kinds.pop(), time.time()
        kill(run, kind)
        time.sleep(seconds / 2)
        wait_for_both_nodes(run)  # the next fault needs its victim
        recovered = time.time()
        time.sleep(seconds / 2)
        ended = time.time()
        steps = completed(run, ended)
        usual = (ended - recovered) / (steps - completed(run, recovered))
        lost = ended - began - usual * (steps - completed(run, began))
        costs.append({"kind": kind, "seconds": ended - began, "usual_step": usual, "lost": lost})
    return costs


def main() -> None:
    """Disturb, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60.0, help="between two faults")
    parser.add_argument("--memory-every", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[RUNS_VARIABLE] = f"{scratch}/runs"
        data = make_dataset(Path(scratch) / "data", num_documents=2000)
        run = submit("pretrain", config(data, arguments.memory_every, "1..2"))
        event_after(run, "first_step", 0.0)
        costs = disturb(run, arguments.faults, arguments.seconds)
        run.request_cancel()
        event_after(run, "attempt_ended", 0.0)
    lost = {kind: [each["lost"] for each in costs if each["kind"] == kind] for kind in dict.fromkeys(KINDS)}
    report = {
        "usual_step": statistics.median(each["usual_step"] for each in costs),
        "faults": len(costs),
        "share_of_steps": 1 - sum(each["lost"] for each in costs) / sum(each["seconds"] for each in costs),
        "share_at_one_a_minute": 1 - statistics.mean(each["lost"] for each in costs) / 60,
        "lost_seconds": {kind: {"mean": statistics.mean(each), "worst": max(each)} for kind, each in lost.items() if each},
    }
    print(json.dumps({**report, "costs": costs}, indent=1))


if __name__ == "__main__":
    main()
