"""Each search of sweeps against random draws on the recorded learning curves, with paired seeds and the same scheduler.

    python -m tests.benchmarks.bench_searchers [--data code] [--seeds 100] [--searches gp,sobol,optuna] [--schedulers asha,fifo]

Simulates sweeps of up to 256 trials until they have cost 64 complete trials. Regret is the true final loss of the best trial so
far minus the table's best, averaged over budgets of 8, 16, 32 and 64 complete trials. Prints a JSON line for each search and
scheduler: regret, paired difference to random, p after Holm's correction within the scheduler, and the median cost until a
configuration among the table's best 1% leads. Then this cost for the default and for random draws, which may take 256 complete
trials. Then, for each model-based search, the regret of 8 trials that know 16 random ones of an earlier sweep (`warm_start`), and
of 8 that do not. The last lines have calibration and bias of what the report says of more trials and of the best one.

Set OMP_NUM_THREADS=1: more threads take `gp` three times as long.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.keys import EarlierTrial
from ropewalk.jobs.orchestration.sweep.records import TrialState
from ropewalk.jobs.orchestration.sweep.report.outlook import expected_best
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult
from ropewalk.jobs.orchestration.sweep.search.plan import MODELS
from ropewalk.jobs.orchestration.sweep.simulate.against_random import compare, measure
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import CurveTable
from ropewalk.jobs.orchestration.sweep.simulate.simulator import simulate
from ropewalk.jobs.results.compare import judge
from tests.benchmarks.record_curves import sweep_of

TRIALS = 256


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values after Holm's correction."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(values, key=lambda name: values[name])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[name]))
        adjusted[name] = largest
    return adjusted


def judge_scheduler(scheduler: str, table: CurveTable, searches: list[str], seeds: range) -> list[dict[str, Any]]:
    """Return a row for random and for each search under a scheduler."""
    config = sweep_of(table).model_copy(update={"scheduler": scheduler, "trials": TRIALS})
    results = {}
    for search in ["random", *searches]:
        began = time.process_time()
        results[search] = measure(config.model_copy(update={"search": search}), table, seeds, lambda _line: None)
        seconds = time.process_time() - began
        print(json.dumps({"scheduler": scheduler, **results[search].plain(), "seconds": round(seconds, 1)}), flush=True)
    comparisons = {search: compare(results[search], results["random"]) for search in searches}
    p_values = holm({search: comparison.p_of("first") or 1.0 for search, comparison in comparisons.items()})
    return [
        {
            "data": table.data,
            "scheduler": scheduler,
            "search": search,
            "gain_over_random": comparison.difference,
            "standard_error": comparison.standard_error,
            "p_holm": p_values[search],
            "share_of_random_regret": statistics.fmean(results[search].means) / statistics.fmean(results["random"].means),
        }
        for search, comparison in comparisons.items()
    ]


def judge_cost(table: CurveTable, seeds: range) -> dict[str, Any]:
    """Return the median cost in complete trials until the best 1% lead: of the default, and of random draws."""
    random, costs = {"search": "random", "trials": 4 * TRIALS}, {}
    for name, changes, most in (
        ("default", {"trials": TRIALS}, 64),
        ("random", random, 256),
        ("random with asha", random | {"scheduler": "asha"}, 256),
    ):
        result = measure(sweep_of(table).model_copy(update=changes), table, seeds, lambda _line: None, most)
        costs[name] = statistics.median(result.costs)
    return {"data": table.data, "trials_to_best_1_percent": costs}


def judge_warm_start(table: CurveTable, search: str, seeds: range, before: int = 16, trials: int = 8) -> dict[str, Any]:
    """Return the regret of a search's next trials after random ones that it knows, and after others that it does not."""
    config = sweep_of(table).model_copy(update={"scheduler": "fifo"})
    regrets: dict[str, list[float]] = {"known": [], "not known": []}
    for seed in seeds:
        earlier = simulate(config.model_copy(update={"search": "random", "trials": before}), table, seed=seed).results
        earlier_trials = [
            EarlierTrial(values=trial.sampled, metric=trial.metric) for trial in earlier.trials if trial.metric is not None
        ]
        for name, trials_before in {"known": earlier_trials, "not known": []}.items():
            later = {"search": search, "trials": trials, "earlier_trials": tuple(trials_before)}
            regrets[name].append(simulate(config.model_copy(update=later), table, seed=seed + 10_000).regret(math.inf))
    comparison = judge([cold - warm for warm, cold in zip(regrets["known"], regrets["not known"], strict=True)])
    means = {f"regret, earlier trials {name}": statistics.fmean(values) for name, values in regrets.items()}
    return {
        "search": search,
        **means,
        "earlier": before,
        "trials": trials,
        "gain": comparison.difference,
        "standard_error": comparison.standard_error,
    }


def judge_bias(table: CurveTable, draws: range, trials: int = 12) -> dict[str, Any] | None:
    """Return the bias of the best trial's metric, observed and expected, in standard deviations of the seeds' noise.

    A sweep is a draw of repeated configurations, trained with one seed; true is the mean of another one. The first seed of the
    table takes no part: its luck decided which configurations are repeated. None if too few are.
    """
    repeated = {
        point: [curve.values[-1] for curve in list(curves.values())[1:]]
        for point, curves in table.curves.items()
        if len(curves) > 2
    }
    if len(repeated) < trials:
        return None
    noise = statistics.fmean(map(statistics.variance, repeated.values())) ** 0.5
    biases: dict[str, list[float]] = {"observed": [], "expected": []}
    for draw in draws:
        mine, other = (0, 1) if draw % 2 else (1, 0)
        drawn = random.Random(draw).sample(list(repeated), trials)
        results = _complete([(dict(zip(table.keys, point, strict=True)), repeated[point][mine]) for point in drawn])
        best, estimate = results.best, expected_best(results)
        assert best is not None
        assert best.metric is not None
        assert estimate is not None
        true = repeated[tuple(best.parameters[key] for key in table.keys)][other]
        biases["observed"].append((best.metric - true) / noise)
        biases["expected"].append((estimate.metric - true) / noise)
    means = {f"bias_{name}": statistics.fmean(values) for name, values in biases.items()}
    return {"noise_of_seeds": noise, "repeated": len(repeated), "n": len(draws), **means}


def _complete(values: list[tuple[dict[str, Any], float]]) -> SweepResults:
    """Return a sweep of complete trials with these parameters and metrics."""
    trials = [
        TrialResult(trial=number, parameters=parameters, state=TrialState.SUCCEEDED, metric=metric)
        for number, (parameters, metric) in enumerate(values)
    ]
    return SweepResults(run=RunDir(Path("drawn")), metric="loss", mode="min", wanted=len(trials), trials=trials)


def judge_chance(table: CurveTable, search: str, seeds: range, trials: int = 24, more: int = 8) -> dict[str, Any]:
    """Return how often further trials found a better one, and the probability that the report names.

    A trial of the same configuration as the best counts half.
    """
    config = sweep_of(table).model_copy(update={"trials": trials + more, "search": search})
    better = []
    for seed in seeds:
        values = [math.inf if t.metric is None else t.metric for t in simulate(config, table, seed=seed).trials]
        first, rest = min(values[:trials]), min(values[trials:])
        better.append(1.0 if rest < first else 0.5 if rest == first else 0.0)
    return {"search": search, "better": statistics.fmean(better), "claimed": more / (more + trials)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="code")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--searches", default="gp,sobol,optuna")
    parser.add_argument("--schedulers", default="asha,fifo")
    parser.add_argument("--table", default=None)
    arguments = parser.parse_args()
    table = CurveTable.read(arguments.data, *([arguments.table] if arguments.table else []))
    for scheduler in arguments.schedulers.split(","):
        for row in judge_scheduler(scheduler, table, arguments.searches.split(","), range(arguments.seeds)):
            print(json.dumps(row), flush=True)
    print(json.dumps(judge_cost(table, range(arguments.seeds))), flush=True)
    for search in sorted(MODELS):
        print(json.dumps({"data": table.data, **judge_warm_start(table, search, range(arguments.seeds))}), flush=True)
    for search in ("random", "gp"):
        print(json.dumps({"data": table.data, **judge_chance(table, search, range(arguments.seeds))}), flush=True)
    print(json.dumps({"data": table.data, "bias": judge_bias(table, range(arguments.seeds))}), flush=True)


if __name__ == "__main__":
    main()
