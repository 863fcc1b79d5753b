"""The search `gp`: the largest expected improvement under a Gaussian process."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.orchestration.sweep.search.coordinates import Coordinates
from ropewalk.jobs.orchestration.sweep.search.plan import SearchPlan
from ropewalk.jobs.orchestration.sweep.search.space import encode

if TYPE_CHECKING:
    from ropewalk.jobs.orchestration.sweep.search.gaussian_process import Array, Prediction, Scales

STARTUP_TRIALS = 5  # trials with a value, before which the model is not used
REFIT_GROWTH = 1.25  # the scales are fitted again when there are so many times the trials
ANYWHERE, NEAR_BEST, BEST = 300, 20, 5  # candidates drawn from the whole space, and near each of the best trials
NEAR = 0.1  # standard deviation of a step from one of the best trials, as a share of the range
MARGIN = 0.1  # smallest improvement worth a trial, in standard deviations of the values; less would repeat the best trial
FAR = 3.0  # values this many times the spread above the median are moved there, as diverged trials say nothing of the best


class GaussianModel:
    """Proposes trials. Stopped trials count with the value that they would have had, pending ones only as known points."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan, self.coordinates = plan, Coordinates(plan.space)
        self._sign = 1.0 if plan.mode == "min" else -1.0
        self._earlier = [(self.coordinates.unit(values), self._sign * metric) for values, metric in plan.earlier_trials]
        self._units: dict[int, list[float]] = {}  # by trial
        self._scales: dict[int, Scales] = {}  # by the number of trials to which they were fitted

    def add(self, number: int, values: Mapping[str, Any]) -> None:
        self._units[number] = self.coordinates.unit(values)

    def propose(self, number: int, ended: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Return the values of a trial; None if it is to be drawn. A function of seed, number and history alone."""
        import numpy as np

        results = [(self._units[trial], None if value is None else self._sign * value) for trial, value in ended.items()]
        results = [*self._earlier, *results]
        metrics = [metric for _, metric in results if metric is not None]
        if len(metrics) < STARTUP_TRIALS:
            return None
        generator = np.random.default_rng([self.plan.seed, number])
        units = np.array([unit for unit, _ in results])
        values = self._standardized([max(metrics) if metric is None else metric for _, metric in results])
        pending = [unit for trial, unit in self._units.items() if trial not in ended]
        candidates = self._candidates(generator, units[np.argsort(values, kind="stable")[:BEST]])
        chosen = candidates[int(np.argmax(self._improvement(units, values, pending, candidates)))]
        return {key: encode(parameter.at(float(u))) for (key, parameter), u in zip(self.plan.space.items(), chosen, strict=True)}

    def _standardized(self, metrics: list[float]) -> "Array":
        import numpy as np

        values, middle = np.array(metrics), float(np.median(metrics))
        values = np.minimum(values, middle + FAR * (middle - float(values.min())))
        standardized: Array = (values - values.mean()) / (float(values.std()) or 1.0)
        return standardized

    def _candidates(self, generator: Any, best_units: "Array") -> "Array":
        """Return points of the unit cube: anywhere, and near the best trials, in one key on average."""
        import numpy as np

        near = np.repeat(best_units, NEAR_BEST, axis=0)
        steps = near + NEAR * generator.standard_normal(near.shape)
        steps = np.where(generator.random(near.shape) < 0.5, steps, generator.random(near.shape))
        near = np.where(generator.random(near.shape) < 1 / near.shape[1], steps, near)
        anywhere = generator.random((ANYWHERE, near.shape[1]))
        points: Array = np.clip(np.concatenate([anywhere, near]), 0.0, 1 - 1e-9)
        return points

    def _improvement(self, units: "Array", values: "Array", pending: list[list[float]], candidates: "Array") -> "Array":
        """Return the expected improvement of each candidate on the best mean of a trial."""
        import numpy as np
        from scipy.special import ndtr

        from ropewalk.jobs.orchestration.sweep.search.gaussian_process import predict

        points = self.coordinates.at(np.concatenate([units, np.array(pending).reshape(-1, units.shape[1])]))
        squares = self.coordinates.squares(points, points)
        scales = self._fitted(squares[:, : len(values), : len(values)], values)
        new: Prediction = predict(scales, squares, values, self.coordinates.squares(points, self.coordinates.at(candidates)))
        gain = new.known_means.min() - MARGIN - new.means
        ratio = gain / new.deviations
        density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
        improvement: Array = gain * ndtr(ratio) + new.deviations * density
        return improvement

    def _fitted(self, squares: "Array", values: "Array") -> "Scales":
        """Return the scales fitted to the first trials, whose number grows in steps, since fitting takes longest."""
        from ropewalk.jobs.orchestration.sweep.search.gaussian_process import fit

        count = STARTUP_TRIALS
        while (more := int(count * REFIT_GROWTH) + 1) <= len(values):
            count = more
        if count not in self._scales:
            self._scales[count] = fit(squares[:, :count, :count], values[:count] - values[:count].mean())
        return self._scales[count]
