"""The searches of a sweep: the parameters of the k-th trial, and what a model-based search learns from the trials before it."""

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.orchestration.sweep.search.space import Space, active_parameters, as_text, decode, encode

if TYPE_CHECKING:
    from optuna import Study

MODELS = frozenset({"optuna"})  # searches that learn from results


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The keys of a sweep that determine its search."""

    space: Space
    search: str
    mode: str = "min"
    seed: int = 0
    startup_trials: int = 10
    earlier_trials: Sequence[tuple[Mapping[str, Any], float]] = ()  # encoded values and final metric of trials of earlier sweeps


class Search:
    """Suggests the parameters of trial 0, 1, ...; trials are counted as pending until `finish`."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self._curves: dict[int, dict[int, float]] = {}  # trial → step → metric
        self._complete: list[int] = []  # trials
        self._ended: list[int] = []  # trials whose end the model does not know yet
        crossed = {key: p for key, p in plan.space.items() if plan.search == "grid" or p.grid is not None}
        self._crossed = list(_crossed(plan.space, crossed)) if plan.search not in MODELS else [{}]
        self._drawn = [key for key in plan.space if plan.search in MODELS or key not in crossed]
        self._study = _study(plan) if plan.search in MODELS else None
        self._asked: dict[int, Any] = {}  # trial → Optuna's trial

    def suggest(self, number: int, recorded: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return all values of trial `number`, encoded; None if a grid has no more. `recorded` values are taken as they are."""
        if self.plan.search == "grid":
            return dict(self._crossed[number]) if number < len(self._crossed) else None
        if self._study is not None:
            return self._ask(self._study, number, recorded)
        point = self._point(number)
        drawn = {key: encode(self.plan.space[key].at(u)) for key, u in zip(self._drawn, point, strict=True)}
        values = {**self._crossed[number % len(self._crossed)], **drawn}
        return {key: values[key] for key in self.plan.space}

    def _point(self, number: int) -> list[float]:
        """Return a point of the unit cube: a pure function of the seed and the trial's number."""
        if self.plan.search == "sobol" and self._drawn:  # no key of a sweep offers it: benchmarks hold it against random
            import numpy as np
            from scipy.stats import qmc

            sequence = qmc.Sobol(len(self._drawn), scramble=True, rng=np.random.default_rng(self.plan.seed))
            if number:
                sequence.fast_forward(number)
            return [float(u) for u in sequence.random(1)[0]]
        generator = random.Random(f"{self.plan.seed}:{number}")
        return [generator.random() for _ in self._drawn]

    def _ask(self, study: "Study", number: int, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        if recorded is not None:
            study.enqueue_trial(dict(recorded))
        # a pure function of seed, number and history: a search that continues after a kill must not repeat its first draws
        study.sampler = _sampler(self.plan, number)
        self._asked[number] = study.ask(dict(_distributions(self.plan.space)))
        return dict(self._asked[number].params)

    def report(self, number: int, step: int, value: float) -> None:
        """Take note of a value of a trial's metric."""
        self._curves.setdefault(number, {})[step] = value

    def finish(self, number: int, *, complete: bool, failed: bool = False) -> None:
        """Take note that a trial ended: at its last step (`complete`), stopped before it, or `failed`."""
        has_value = number in self._curves and not failed
        if complete and has_value:
            self._complete.append(number)
        if self._study is None:
            return
        if not has_value:
            from optuna.trial import TrialState

            self._study.tell(self._asked.pop(number), state=TrialState.FAIL)
            return
        self._ended.append(number)
        if self._complete:  # until then nothing is known of how a stopped trial would have changed: it stays pending
            for ended in self._ended:
                self._study.tell(self._asked.pop(ended), self._final_value(self._curves[ended]))
            self._ended.clear()

    def _final_value(self, curve: Mapping[int, float]) -> float:
        """Return a trial's metric at its end; of a stopped one, what it would be if it changed like the complete trials."""
        return final_value(curve, [self._curves[number] for number in self._complete])


def final_value(curve: Mapping[int, float], complete: Sequence[Mapping[int, float]]) -> float:
    """Return the last value of a curve (step → metric) plus the median change of complete ones from that step on."""
    step = max(curve)
    changes = [other[max(other)] - other[step] for other in complete if step in other]
    return curve[step] + (statistics.median(changes) if changes else 0.0)


def parameters_of(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's parameters: Python values of the keys whose condition holds."""
    return active_parameters(space, {key: decode(space[key], sampled[key]) for key in space})


def _crossed(space: Space, crossed: Space) -> list[dict[str, Any]]:
    """Return all combinations of values, the first key changing fastest; those that differ only in inactive keys count once."""
    combinations: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*(p.values or [] for p in reversed(crossed.values()))):
        sampled = dict(zip(crossed, reversed(values), strict=True))
        active = active_parameters(space, sampled) if len(crossed) == len(space) else sampled
        combinations.setdefault(as_text(active), {key: encode(value) for key, value in sampled.items()})
    return list(combinations.values())


def _distributions(space: Space) -> Mapping[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, Any] = {}
    for key, parameter in space.items():
        if parameter.values is not None:
            result[key] = CategoricalDistribution([encode(value) for value in parameter.values])
        elif parameter.kind == "randint":
            low, high = getattr(parameter, parameter.kind)
            result[key] = IntDistribution(low, high - 1)
        else:
            low, high, *step = getattr(parameter, parameter.kind)
            log = "log" in parameter.kind
            result[key] = FloatDistribution(low, high, log=log, step=step[0] if step and not log else None)
    return result


def _study(plan: SearchPlan) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "minimize" if plan.mode == "min" else "maximize"
    study = optuna.create_study(sampler=_sampler(plan, 0), direction=direction)
    distributions = dict(_distributions(plan.space))
    for values, metric in plan.earlier_trials:
        study.add_trial(optuna.create_trial(params=dict(values), distributions=distributions, value=metric))
    return study


def _sampler(plan: SearchPlan, number: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=(plan.seed * 1_000_003 + number) % 2**32, n_startup_trials=plan.startup_trials)
