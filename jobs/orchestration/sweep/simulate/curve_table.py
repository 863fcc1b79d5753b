"""A table of recorded learning curves: one row for each data set, configuration and seed."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.orchestration.sweep.search.space import Space, encode

SHIPPED = Path(__file__).with_name("curves.parquet")  # made by tests/benchmarks/record_curves.py


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The values of the metric in a recorded run, and its cost in floating-point operations."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    flops: float


@dataclass(frozen=True, kw_only=True)
class CurveTable:
    """The recorded runs on one data set."""

    data: str
    job: str
    metric: str
    keys: tuple[str, ...]
    curves: Mapping[tuple[Any, ...], Mapping[int, Curve]] = field(repr=False)  # encoded values of the keys → seed → curve

    @classmethod
    def read(cls, data: str, file: Path = SHIPPED) -> "CurveTable":
        """Read the curves on a data set. Raises ConfigError if the file has none."""
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[b"ropewalk"])
        rows = table.to_pylist()
        curves: dict[tuple[Any, ...], dict[int, Curve]] = {}
        for row in (row for row in rows if row["data"] == data):
            point = tuple(encode(row[key]) for key in about["keys"])
            curve = Curve(steps=tuple(row["steps"]), values=tuple(row["loss"]), flops=row["flops"])
            curves.setdefault(point, {})[row["seed"]] = curve
        if not curves:
            raise ConfigError(f"{file} has no data set {data!r}; it has {', '.join(sorted({row['data'] for row in rows}))}")
        counts = Counter(point[0] for point in curves)  # the first key changes slowest: its last value may not be complete yet
        curves = {point: seeds for point, seeds in curves.items() if counts[point[0]] == max(counts.values())}
        return cls(data=data, job=about["job"], metric=about["metric"], keys=tuple(about["keys"]), curves=curves)

    @cached_property
    def values(self) -> dict[str, list[Any]]:
        """The recorded values of each key, encoded as in a search."""
        return {key: sorted({point[k] for point in self.curves}) for k, key in enumerate(self.keys)}

    @property
    def num_steps(self) -> int:
        return next(iter(next(iter(self.curves.values())).values())).steps[-1]

    @cached_property
    def mean_flops(self) -> float:
        """Mean cost of a complete trial."""
        return fmean(next(iter(seeds.values())).flops for seeds in self.curves.values())

    def true_value(self, point: tuple[Any, ...]) -> float:
        """Return the mean final value of a configuration over its seeds; infinite if it diverged."""
        values = [curve.values[-1] for curve in self.curves[point].values()]
        return fmean(values) if all(map(math.isfinite, values)) else math.inf

    def nearest(self, parameters: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the recorded configuration nearest to a trial's: numbers are rounded, on a logarithmic scale if above 0."""
        point = tuple(self._round(key, encode(parameters.get(key, _dotted(base, key)))) for key in self.keys)
        if point not in self.curves:
            raise ConfigError(f"{self.data}: no curve was recorded for {dict(zip(self.keys, point, strict=True))}")
        return point

    def _round(self, key: str, value: Any) -> Any:
        values = self.values[key]
        if value in values:
            return value
        if not all(isinstance(each, int | float) for each in (value, *values)):
            raise ConfigError(f"{key}={value}: not recorded; the table has {', '.join(map(str, values))}")
        logarithmic = min(value, *values) > 0
        return min(values, key=lambda each: abs(math.log(each / value)) if logarithmic else abs(each - value))

    def check(self, space: Space, base: Mapping[str, Any]) -> None:
        """Raise ConfigError unless each key of the space was varied, and the base has a recorded value of the others."""
        for key in space:
            if key not in self.keys:
                raise ConfigError(f"space.{key}: the table varies only {', '.join(self.keys)}")
        for key in self.keys:
            if key not in space and encode(_dotted(base, key)) not in self.values[key]:
                raise ConfigError(f"base.{key}: set it to a recorded value: {', '.join(map(str, self.values[key]))}")


def _dotted(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values
