"""Cost of a trial beyond its training: against calling the training directly, and against plain Tune + Ray Train V2.

    python -m tests.benchmarks.bench_sweep_overhead [--trials 8] [--steps 40]

The same configurations everywhere, one trial at a time on one core, which is what Ray gives a worker unless told otherwise;
run on a quiet machine. Prints one JSON object.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.records import read_records
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults
from tests.benchmarks.swept import base, measured, sweep, use_folder
from tests.jobs.corpus import make_dataset

ONE_AT_A_TIME: dict[str, Any] = {"max_concurrent": 1, "space": {"optim.lr": {"loguniform": [3e-4, 3e-2]}}}


def train(folder: str, values: dict[str, Any]) -> float:
    """Call the training in this process; the validation loss."""
    run = RunDir.create(
        "direct",
        {"job": "pretrain", "entry": "ropewalk.jobs.training.pretrain.job:main", "config": values},
        Path(folder) / "direct",
    )
    context = JobContext(run=run, attempt=run.begin_attempt())
    context.fence.claim()
    assert run_entry(context) == 0, run.read_errors(1)
    return float(run.results()["validation/loss"])


def directly(folder: Path, data: Path, steps: int, rates: list[float]) -> list[float]:
    """Seconds of each training, called one after the other in a process that has imported all."""
    code = (
        "import json, sys, time\n"
        "from tests.benchmarks.bench_sweep_overhead import train\n"
        "import ropewalk.jobs.training.loop.recipe\n"
        "found = []\n"
        "for values in json.loads(sys.argv[2]):\n"
        "    began = time.monotonic(); train(sys.argv[1], values); found.append(time.monotonic() - began)\n"
        "print(json.dumps(found))\n"
    )
    configs = [base(data, steps, optim={"lr": rate}) for rate in rates]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-c", code, str(folder), json.dumps(configs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def seconds_a_trial(answers: SweepResults) -> list[float]:
    """From each trial's end to the next one's: all that a trial takes while only one runs at a time."""
    ends = [record.ended or 0.0 for record in read_records(answers.run)]
    return [after - before for before, after in itertools.pairwise(ends)]


def plain_tune(folder: Path, data: Path, steps: int, rates: list[float]) -> None:
    """Run the trials as a Ray user writes them: a function of Tune that runs a TorchTrainer of Train V2."""
    code = Path(__file__).with_name("plain_tune.py")
    configs = [base(data, steps, optim={"lr": rate}) for rate in rates]
    environment = {**os.environ, "RAY_TRAIN_V2_ENABLED": "1"}
    command = [sys.executable, str(code), str(folder), json.dumps(configs)]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr, check=True)


def main() -> None:
    """Three ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    report: dict[str, Any] = {"trials": arguments.trials, "steps_of_a_trial": arguments.steps}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        use_folder(folder)
        data = make_dataset(folder / "data", num_documents=4000)
        with measured() as cost:
            answers = sweep(data, arguments.steps, trials=arguments.trials, **ONE_AT_A_TIME)
        report["ropewalk"] = {**cost, "seconds_a_trial": seconds_a_trial(answers)}
        rates = [float(trial.parameters["optim.lr"]) for trial in sorted(answers.trials, key=lambda t: t.trial)]
        with measured() as cost:
            taken = directly(folder, data, arguments.steps, rates)
        report["directly"] = {**cost, "seconds_a_trial": taken}
        time.sleep(0.1)
        with measured() as cost:
            plain_tune(folder, data, arguments.steps, rates)
        report["plain_tune"] = cost
    ours, direct = (sorted(report[name]["seconds_a_trial"]) for name in ("ropewalk", "directly"))
    report["overhead_seconds_a_trial"] = ours[len(ours) // 2] - direct[len(direct) // 2]
    for key in ("wall_seconds", "cpu_seconds"):
        report[f"{key}_against_plain_tune"] = report["ropewalk"][key] / report["plain_tune"][key]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
