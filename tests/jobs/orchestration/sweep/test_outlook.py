"""Expectations from the trials of a sweep, on made-up losses with a known noise of seeds."""

import math
import random
import statistics
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.records import TrialState
from ropewalk.jobs.orchestration.sweep.report.outlook import chance_of_better, expected_best
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult

NOISE = 0.2


def true_loss(rate: float, decay: float) -> float:
    return 3.0 + 0.3 * (math.log10(rate) + 2.5) ** 2 + decay


def sweep(seed: int, trials: int, noise: float = NOISE, mode: str = "min") -> SweepResults:
    generator, results, sign = random.Random(seed), [], 1.0 if mode == "min" else -1.0
    for number in range(trials):
        parameters = {"lr": 10 ** generator.uniform(-4, -1), "wd": generator.uniform(0.0, 0.3)}
        value = true_loss(*parameters.values()) + generator.gauss(0, noise)
        metric = sign * value
        results.append(TrialResult(trial=number, parameters=parameters, state=TrialState.SUCCEEDED, metric=metric))
    return SweepResults(run=RunDir(Path("sweep")), metric="loss", mode=mode, wanted=trials, trials=results)


def test_the_expected_metric_of_the_best_has_a_small_bias() -> None:
    observed, expected = [], []
    for seed in range(40):
        results = sweep(seed, 24)
        best, estimate = results.best, expected_best(results)
        assert best is not None
        assert best.metric is not None
        assert estimate is not None
        true = true_loss(*best.parameters.values())
        observed.append((best.metric - true) / NOISE)
        expected.append((estimate.metric - true) / NOISE)
    assert statistics.fmean(observed) < -1.0, "the best of 24 noisy values is too good"
    assert abs(statistics.fmean(expected)) < 0.5


def test_without_noise_the_observed_metric_is_expected() -> None:
    for mode in ("min", "max"):
        results = sweep(0, 24, noise=0.0, mode=mode)
        estimate = expected_best(results)
        assert estimate is not None
        assert results.best is not None
        assert estimate.metric == pytest.approx(results.best.metric, abs=0.02)


def test_few_trials_say_nothing() -> None:
    assert expected_best(sweep(0, 7)) is None
    assert chance_of_better(sweep(0, 0), 8) is None


def test_the_chance_of_a_better_trial_is_as_often_true() -> None:
    better = 0
    for seed in range(300):
        values = [trial.metric or 0.0 for trial in sweep(seed, 24).trials]
        better += min(values[16:]) < min(values[:16])
    assert chance_of_better(sweep(0, 16), 8) == pytest.approx(better / 300, abs=0.1)
