"""How much each parameter of a sweep matters: PED-ANOVA by Optuna, beside what mere chance would give.

Watanabe, Bansal, Hutter: PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces, IJCAI 2023.
It compares how the best trials spread over a parameter with how all of them do; so a trial that was stopped early
needs no value of its own at the end, only its place among the others.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.jobs.orchestration.sweep.plot_axes import Axis, axes_of, category
from ropewalk.jobs.orchestration.sweep.results import SweepResults, TrialResult

LEAST_TRIALS = 6
ENOUGH_TRIALS = 30
BEST_TRIALS = 5  # as many at least are the best ones, as the method's authors advise
SHUFFLES = 60
CHANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A share for each parameter, largest first; they add up to 1."""

    shares: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)  # what 95% of shuffled metrics stay below
    n: int = 0
    caution: str = ""


def importance_of(results: SweepResults) -> Importance:
    """The importance of each parameter, over trials that finished or were stopped for their value, not for a spent budget."""
    trials = [t for t in results.eligible if t.state == "SUCCEEDED" or t.stopped_at is not None]
    axes = axes_of(results.run.record["config"].get("space") or {}, trials)
    if len(trials) < LEAST_TRIALS or not axes:
        few = f"{len(trials)} of {LEAST_TRIALS} trials: too few to tell what matters" if axes else "no parameter has two values"
        return Importance(n=len(trials), caution=few)
    sign = 1.0 if results.mode == "min" else -1.0
    values = [sign * float(trial.metric or 0.0) for trial in trials]
    found = _divergences(axes, trials, values)
    generator, shuffled = random.Random(0), []
    for _ in range(SHUFFLES):
        generator.shuffle(values)
        shuffled.append(_divergences(axes, trials, values))
    total = sum(found.values()) or 1.0
    chance = {key: sorted(one[key] for one in shuffled)[int(CHANCE * SHUFFLES)] / total for key in found}
    ordered = sorted(found, key=lambda key: -found[key])
    return Importance(
        shares={key: found[key] / total for key in ordered}, chance=chance, n=len(trials), caution=_caution(len(trials))
    )


def _caution(n: int) -> str:
    return f"only {n} trials: read with caution" if n < ENOUGH_TRIALS else ""


def _divergences(axes: Sequence[Axis], trials: Sequence[TrialResult], values: Sequence[float]) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    distributions = {axis.key: _distribution(axis, optuna.distributions) for axis in axes}
    for trial, value in zip(trials, values, strict=True):
        own = {axis.key: _value(axis, trial.parameters[axis.key]) for axis in axes if axis.key in trial.parameters}
        kept = {key: distributions[key] for key in own}
        study.add_trial(optuna.trial.create_trial(params=own, distributions=kept, value=value))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few trials is told by `caution`
        evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, BEST_TRIALS / len(trials))))
        for axis in axes:  # one by one: some hold under a condition only
            told = get_param_importances(study, evaluator=evaluator, params=[axis.key], normalize=False)
            found[axis.key] = float(told[axis.key])
    return found


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
