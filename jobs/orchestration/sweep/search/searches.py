"""The searches of a sweep: the parameters of the k-th trial, and what a model-based search learns from the trials before it."""

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from ropewalk.jobs.orchestration.sweep.search.gaussian_model import GaussianModel
from ropewalk.jobs.orchestration.sweep.search.optuna_model import OptunaModel
from ropewalk.jobs.orchestration.sweep.search.plan import MODELS, SearchPlan
from ropewalk.jobs.orchestration.sweep.search.space import Space, active_parameters, as_text, decode, encode

SOBOL = frozenset({"sobol", "gp"})  # searches that draw from a Sobol sequence


class Model(Protocol):
    """A model of the metric that proposes trials."""

    def propose(self, number: int, ended: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Return all values of a trial, encoded, or None before there is a model. `ended`: final metric; None: failed."""
        ...

    def add(self, number: int, values: Mapping[str, Any]) -> None:
        """Take note of a trial that begins; it is pending until it has ended."""
        ...


class Search:
    """Suggests the parameters of trial 0, 1, ...; trials are counted as pending until `finish`."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self._curves: dict[int, dict[int, float]] = {}  # trial → step → metric
        self._complete: list[int] = []  # trials
        self._ended: dict[int, bool] = {}  # trials, in the order of their ends; True: it has a value
        crossed = {key: p for key, p in plan.space.items() if plan.search == "grid" or p.grid is not None}
        self._crossed = list(_crossed(plan.space, crossed)) if plan.search not in MODELS else [{}]
        self._drawn = [key for key in plan.space if plan.search in MODELS or key not in crossed]
        models: dict[str, Callable[[SearchPlan], Model]] = {"gp": GaussianModel, "optuna": OptunaModel}
        self._model = models[plan.search](plan) if plan.search in models else None

    def suggest(self, number: int, recorded: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return all values of trial `number`, encoded; None if a grid has no more. `recorded` values are taken as they are."""
        if self.plan.search == "grid":
            return dict(self._crossed[number]) if number < len(self._crossed) else None
        if self._model is None:
            return self._draw(number)
        values = dict(recorded) if recorded is not None else self._model.propose(number, self._final_values())
        values = self._draw(number) if values is None else values
        self._model.add(number, values)
        return values

    def _draw(self, number: int) -> dict[str, Any]:
        point = self._point(number)
        drawn = {key: encode(self.plan.space[key].at(u)) for key, u in zip(self._drawn, point, strict=True)}
        values = {**self._crossed[number % len(self._crossed)], **drawn}
        return {key: values[key] for key in self.plan.space}

    def _point(self, number: int) -> list[float]:
        """Return a point of the unit cube: a pure function of the seed and the trial's number."""
        if self.plan.search in SOBOL and self._drawn:
            import numpy as np
            from scipy.stats import qmc

            sequence = qmc.Sobol(len(self._drawn), scramble=True, rng=np.random.default_rng(self.plan.seed))
            if number:
                sequence.fast_forward(number)
            return [float(u) for u in sequence.random(1)[0]]
        generator = random.Random(f"{self.plan.seed}:{number}")
        return [generator.random() for _ in self._drawn]

    def report(self, number: int, step: int, value: float) -> None:
        """Take note of a value of a trial's metric."""
        self._curves.setdefault(number, {})[step] = value

    def finish(self, number: int, *, complete: bool, failed: bool = False) -> None:
        """Take note that a trial ended: at its last step (`complete`), stopped before it, or `failed`."""
        has_value = number in self._curves and not failed
        self._ended[number] = has_value
        if complete and has_value:
            self._complete.append(number)

    def _final_values(self) -> dict[int, float | None]:
        """Return the metric of the ended trials at their end; of a stopped one, what it would be if it changed like the complete.

        Without a complete trial nothing is known of how a stopped one would have changed: it counts as pending.
        """
        complete = [self._curves[number] for number in self._complete]
        change = cache(lambda step: _change_after(step, complete))
        values: dict[int, float | None] = {}
        for number, has_value in self._ended.items():
            if not has_value:
                values[number] = None
            elif complete:
                step = max(self._curves[number])
                values[number] = self._curves[number][step] + change(step)
        return values


def final_value(curve: Mapping[int, float], complete: Sequence[Mapping[int, float]]) -> float:
    """Return the last value of a curve (step → metric) plus the median change of complete ones from that step on."""
    step = max(curve)
    return curve[step] + _change_after(step, complete)


def _change_after(step: int, complete: Sequence[Mapping[int, float]]) -> float:
    changes = [other[max(other)] - other[step] for other in complete if step in other]
    return statistics.median(changes) if changes else 0.0


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
