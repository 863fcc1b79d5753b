"""Optuna against random search at an equal budget, and a population against as many random trials.

    python -m tests.benchmarks.bench_sweep_search [--seeds 3] [--trials 8] [--steps 40]

Takes twenty minutes on two cores, and says each sweep's result as it comes. Prints one JSON object: the best validation
loss of each, with standard errors over the seeds, whatever they are.

Measured: Three seeds, mean and standard error of the best validation loss.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.jobs.orchestration.sweep.report.results import SweepResults
from tests.benchmarks.swept import SPACE, base, quickstart_data, spread, sweep, use_folder

MEMBERS = 4
POPULATION_SPACE = {key: SPACE[key] for key in ("optim.lr", "optim.weight_decay")}


def best_of(answers: SweepResults) -> float:
    """The best validation loss."""
    assert answers.best is not None
    assert answers.best.metric is not None
    return answers.best.metric


def told(name: str, seed: int, data: Path, steps: int, keys: Mapping[str, Any]) -> SweepResults:
    """One sweep, and a line about it."""
    began = time.monotonic()
    answers = sweep(data, steps, seed=seed, **keys)
    line = f"{name}, {len(answers.trials)} trials of {steps} steps, seed {seed}: {best_of(answers):.4f}"
    print(f"{line}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return answers


def compare(data: Path, steps: int, seeds: int, contestants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each contestant's best loss over the seeds."""
    results: dict[str, Any] = {}
    for name, keys in contestants.items():
        sweeps = [told(name, seed, data, steps, keys) for seed in range(seeds)]
        exploits = sum(len(trial.lineage) for sweep in sweeps for trial in sweep.trials)
        losses = [best_of(sweep) for sweep in sweeps]
        results[name] = {**spread(losses), "losses": losses, "steps": [sweep.spent for sweep in sweeps], "exploits": exploits}
    return results


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    steps, trials = arguments.steps, arguments.trials
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        use_folder(folder)
        data = quickstart_data(folder)
        startup = {"optuna": {"startup_trials": max(2, trials // 3)}, "search": "optuna", "max_concurrent": 1}
        searches = {"random": {"trials": trials}, "optuna": {"trials": trials, **startup}}
        interval = max(1, steps * 2 // 5)
        population_base = base(data, steps * 2, checkpoint={"every_steps": interval, "keep": 2})
        population = {"trials": MEMBERS, "space": POPULATION_SPACE, "max_concurrent": MEMBERS, "base": population_base}
        pbt = {**population, "scheduler": "pbt", "pbt": {"interval_steps": interval}}
        report = {
            "steps_of_a_trial": steps,
            "searches": compare(data, steps, arguments.seeds, searches),
            "populations": compare(data, steps * 2, arguments.seeds, {"random": population, "pbt": pbt}),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
