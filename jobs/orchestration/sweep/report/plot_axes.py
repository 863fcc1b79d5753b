"""Plot axes of a sweep's parameters: linear, logarithmic or categorical."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.text import format_value
from ropewalk.jobs.orchestration.sweep.report.results import TrialResult
from ropewalk.jobs.orchestration.sweep.search.space import Parameter

MOST_TICKS = 7


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Mapping of a parameter's values to positions between 0 and 1."""

    key: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    categories: Sequence[str] = ()

    def position(self, value: Any) -> float:
        """Return 0 at the low end, 1 at the high end; categories are spaced evenly."""
        if self.categories:
            return (self.categories.index(category(value)) + 0.5) / len(self.categories)
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return (position, label) of each tick."""
        if self.categories:
            return [(self.position(name), name if len(name) <= 14 else f"{name[:13]}…") for name in self.categories]
        if self.high <= self.low:
            return [(0.5, format_value(self.low))]
        return [(self.position(value), _tick_label(value)) for value in self._tick_values()]

    def _tick_values(self) -> list[float]:
        """Return round tick values: decades (with 2 and 5 between if there are few), or multiples of 1, 2 or 5."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log:
            values = LogLocator(numticks=MOST_TICKS).tick_values(self.low, self.high)
            if sum(self.low <= value <= self.high for value in values) < 3:
                values = LogLocator(subs=(1, 2, 5), numticks=MOST_TICKS).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(MOST_TICKS - 2, steps=[1, 2, 5, 10], integer=self.whole).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - slack <= value <= self.high + slack] or [self.low, self.high]


def axes_of(space: Mapping[str, Any], trials: Iterable[TrialResult]) -> list[Axis]:
    """Return an axis for each parameter with at least two values, in the order of the space."""
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for key, value in trial.parameters.items():
            values.setdefault(key, []).append(value)
    keys = [*(key for key in space if key in values), *(key for key in values if key not in space)]
    axes = [_axis(key, _parameter(space.get(key), key), values[key]) for key in keys]
    return [axis for axis in axes if len(axis.categories) > 1 or axis.high > axis.low]


def category(value: Any) -> str:
    """Return the label of a choice's value, equal for 0.1 and 0.10."""
    return format_value(value) if not isinstance(value, (dict, list)) else json.dumps(value, default=str)


def _parameter(item: Any, key: str) -> Parameter | None:
    try:
        return load_section(Parameter, item or {})
    except ConfigError:  # of another version: use the values alone
        return None


def _axis(key: str, parameter: Parameter | None, values: Sequence[Any]) -> Axis:
    listed = list(parameter.values or []) if parameter is not None else []
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in [*listed, *values])
    chosen = listed and {category(value) for value in values} <= {category(value) for value in listed}
    if not numbers or chosen:
        categories = sorted(listed) if numbers else [*listed, *values]
        return Axis(key=key, categories=list(dict.fromkeys(category(value) for value in categories)))
    # population-based training may leave the range or choice
    ends = [*(listed or (parameter.extremes if parameter is not None else [])), *values]
    log = parameter is not None and "log" in parameter.kind and min(ends) > 0
    whole = all(isinstance(value, int) for value in values)
    return Axis(key=key, low=float(min(ends)), high=float(max(ends)), log=log, whole=whole)


def _tick_label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:.6g}"
