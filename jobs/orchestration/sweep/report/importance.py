"""Importance of a sweep's parameters by Optuna's PED-ANOVA, compared with the importance that chance alone would give.

Watanabe, Bansal, Hutter: PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces, IJCAI 2023.
It compares the distribution of the best trials over a parameter with that of all trials, so that trials stopped early only
need a rank, not a final value.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.jobs.orchestration.sweep.report.plot_axes import Axis, axes_of, category
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult

LEAST_TRIALS = 6
ENOUGH_TRIALS = 30
BEST_TRIALS = 5  # at least so many count as the best, as the method's authors advise
SHUFFLES = 60
CHANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Share of each parameter, largest first, summing to 1."""

    shares: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)  # 95th percentile of the share with shuffled metrics
    n: int = 0
    caution: str = ""


def importance_of(results: SweepResults) -> Importance:
    """Return the importance of each parameter over trials that finished or were stopped for their value, not by the budget."""
    trials = [t for t in results.eligible if t.state == "SUCCEEDED" or t.stopped_at is not None]
    axes = axes_of(results.run.record["config"].get("space") or {}, trials)
    if len(trials) < LEAST_TRIALS or not axes:
        reason = f"{len(trials)} of {LEAST_TRIALS} trials: too few for importances" if axes else "no parameter has two values"
        return Importance(n=len(trials), caution=reason)
    sign = 1.0 if results.mode == "min" else -1.0
    values = [sign * float(trial.metric or 0.0) for trial in trials]
    importances = _divergences(axes, trials, values)
    generator, shuffled = random.Random(0), []
    for _ in range(SHUFFLES):
        generator.shuffle(values)
        shuffled.append(_divergences(axes, trials, values))
    total = sum(importances.values()) or 1.0
    chance = {key: sorted(sample[key] for sample in shuffled)[int(CHANCE * SHUFFLES)] / total for key in importances}
    ordered = sorted(importances, key=lambda key: -importances[key])
    caution = f"only {len(trials)} trials: interpret with caution" if len(trials) < ENOUGH_TRIALS else ""
    shares = {key: importances[key] / total for key in ordered}
    return Importance(shares=shares, chance=chance, n=len(trials), caution=caution)


def _divergences(axes: Sequence[Axis], trials: Sequence[TrialResult], values: Sequence[float]) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    distributions = {axis.key: _distribution(axis, optuna.distributions) for axis in axes}
    for trial, value in zip(trials, values, strict=True):
        parameters = {axis.key: _value(axis, trial.parameters[axis.key]) for axis in axes if axis.key in trial.parameters}
        used = {key: distributions[key] for key in parameters}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=used, value=value))
    divergences = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `caution` warns of few trials
        evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, BEST_TRIALS / len(trials))))
        for axis in axes:  # one by one, because some parameters are conditional
            importance = get_param_importances(study, evaluator=evaluator, params=[axis.key], normalize=False)
            divergences[axis.key] = float(importance[axis.key])
    return divergences


def _distribution(axis: Axis, kinds: Any) -> Any:
    if axis.categories:
        return kinds.CategoricalDistribution(list(axis.categories))
    if axis.whole:
        return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)


def _value(axis: Axis, value: Any) -> Any:
    if axis.categories:
        return category(value)
    return int(value) if axis.whole else min(max(float(value), axis.low), axis.high)
