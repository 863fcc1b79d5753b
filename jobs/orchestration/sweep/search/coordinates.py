"""Coordinates of a sweep's parameters for a model: numbers from 0 to 1, other values by their index."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.orchestration.sweep.search.space import Parameter, Space, as_list, encode, in_order_of_conditions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Coordinates:
    """Maps trials of a space to coordinates, NaN for keys whose condition does not hold. N: trials; D: keys of the space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._encoded = {key: [encode(value) for value in p.values] for key, p in space.items() if p.values is not None}

    def unit(self, values: Mapping[str, Any]) -> list[float]:
        """Return the point of the unit cube at which `Parameter.at` gives these encoded values."""
        return [self._share(key, parameter, values[key]) for key, parameter in self.space.items()]

    def _share(self, key: str, parameter: Parameter, value: Any) -> float:
        if key in self._encoded:
            return (self._encoded[key].index(value) + 0.5) / len(self._encoded[key])
        low, high, *_ = getattr(parameter, parameter.kind)
        if parameter.kind == "randint":
            return float((value - low + 0.5) / (high - low))
        share = math.log(value / low) / math.log(high / low) if "log" in parameter.kind else (value - low) / (high - low)
        return min(max(share, 0.0), 1 - 1e-9)

    def at(self, units_ND: "Array") -> "Array":
        """Return the coordinates of points of the unit cube."""
        import numpy as np

        columns: dict[str, Array] = {}
        for k, (key, parameter) in enumerate(self.space.items()):
            places = self._places(parameter)
            columns[key] = units_ND[:, k] if places is None else np.array(places)[(units_ND[:, k] * len(places)).astype(int)]
        for key in in_order_of_conditions(self.space):
            for other, wanted in self.space[key].when.items():
                options = self.space[other].values or []
                holding = [option in as_list(wanted) for option in options]
                index = (units_ND[:, list(self.space).index(other)] * len(options)).astype(int)
                holds = np.array(holding)[index] & ~np.isnan(columns[other])
                columns[key] = np.where(holds, columns[key], np.nan)
        return np.stack(list(columns.values()), axis=1)

    def _places(self, parameter: Parameter) -> list[float] | None:
        """Return the coordinate of each value of a key: numbers by their rank, others by their index; None for a range."""
        if parameter.kind == "randint":
            low, high = getattr(parameter, parameter.kind)
            return [k / max(1, high - low - 1) for k in range(high - low)] if high - low <= 1000 else None
        if parameter.values is None:
            return None
        if _has_order(parameter):
            ordered = sorted(parameter.values)
            return [ordered.index(value) / max(1, len(ordered) - 1) for value in parameter.values]
        return [float(index) for index in range(len(parameter.values))]

    def squares(self, first_ND: "Array", second_MD: "Array") -> "Array":
        """Return the squared distances in each key, with shape (D, N, M): 1 between values without an order that differ.

        Where a key does not hold, it is a point beside its range, 1 from both ends: a kernel needs distances that points of a
        plane can have.
        """
        import numpy as np

        layers = []
        for k, parameter in enumerate(self.space.values()):
            a, b = first_ND[:, k, None], second_MD[None, :, k]
            if _has_order(parameter):
                within, beside = (a - b) ** 2, 0.75 + (np.fmax(a, b) - 0.5) ** 2
            else:
                within, beside = a != b, np.array(1.0)
            lacking = np.isnan(a).astype(int) + np.isnan(b)
            layers.append(np.choose(lacking, [within, beside, 0.0]))
        return np.array(layers, dtype=float)


def _has_order(parameter: Parameter) -> bool:
    values = parameter.values or []
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
