"""Two models, or two groups of runs, compared item by item: what was asked alike is paired, and nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.results.compare import Comparison, judge
from ropewalk.jobs.results.score import hash_of
from ropewalk.jobs.runs.models.evaluations import METRICS, Evaluation

_PER_UNIT = 2  # an item's value is a pair: summed log-likelihood, and the words or bytes it is for


@dataclass(kw_only=True)
class MetricComparison:
    """One metric of one task on both sides."""

    task: str
    metric: str
    higher_is_better: bool
    first: float  # the mean over the items that both have
    second: float
    found: Comparison
    unpaired: int  # items that only one side has, or that were asked differently
    hash: str
    unit: str = ""  # where it is not the metric's own

    @property
    def better(self) -> str | None:
        """The better side; None: not shown."""
        if self.higher_is_better or self.found.better is None:
            return self.found.better
        return "second" if self.found.better == "first" else "first"

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON has it."""
        own = {key: value for key, value in vars(self).items() if key != "found"}
        return {**own, **self.found.plain(), "better": self.better}


@dataclass(kw_only=True)
class Compared:
    """All that two sides have in common."""

    names: tuple[str, str]
    pairs: list[tuple[Evaluation, Evaluation]]
    seeds: bool  # the runs of a side differ in their seeds, and each seed is one observation
    metrics: list[MetricComparison] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """What `compare --json` prints; `scores` are the differences, first side minus second."""
        scores: dict[str, dict[str, Any]] = {}
        for one in self.metrics:
            score = {"value": one.found.difference, "standard_error": one.found.standard_error, "n": one.found.n}
            scores.setdefault(one.task, {})[one.metric] = {**score, "hash": one.hash}
        return {
            "first": self.names[0],
            "second": self.names[1],
            "runs": [[a.run.id, b.run.id] for a, b in self.pairs],
            "seeds": self.seeds,
            "scores": scores,
            "comparisons": [{**one.plain(), "words": self.words(one)} for one in self.metrics],
        }

    def words(self, one: MetricComparison) -> str:
        """What is shown of a metric, in a sentence."""
        name, found, unit = f"{one.task}/{one.metric}", one.found, f" {one.unit}" if one.unit else ""
        if found.interval is None or found.smallest_difference is None or found.difference is None:
            return f"{name}: nothing can be said of {found.groups} {self._observations}; two are the least."
        low, high = found.interval
        basis = f"95% interval {low:.4g} to {high:.4g}, p = {found.p_value:.3g}, n = {found.n}"
        if self.seeds:
            basis += f" over {found.groups} seeds"
        if one.better is None and found.alike and found.difference:
            return (
                f"{name}: no difference is shown ({found.difference:+.4g}{unit}, alike in all of {found.groups} "
                f"{self._observations}, which are too few; p = {found.p_value:.3g}, n = {found.n})."
            )
        if one.better is None:
            return (
                f"{name}: no difference is shown ({found.difference:+.4g}{unit}; {basis}); one below "
                f"{found.smallest_difference:.4g}{unit} cannot be told from none here, and one of "
                f"{found.detectable_difference:.4g}{unit} would be found four times of five."
            )
        winner = self.names[0] if one.better == "first" else self.names[1]
        return f"{name}: {winner} is better, by {abs(found.difference):.4g}{unit} ({basis})."

    @property
    def _observations(self) -> str:
        return "seeds" if self.seeds else "items"


def compare(first: Sequence[Evaluation], second: Sequence[Evaluation], names: tuple[str, str], *, seeds: bool) -> Compared:
    """Pair both sides item by item; with `seeds` also run by run, by their seeds. Raises ConfigError where nothing pairs."""
    if not seeds and (len(first) > 1 or len(second) > 1):
        raise ConfigError(
            f"{names[0]} has {len(first)} evaluations, {names[1]} {len(second)}; add --seeds to compare them as groups, "
            "or name one run of each"
        )
    pairs = _by_seed(first, second, names) if seeds else [(first[0], second[0])]
    found = Compared(names=names, pairs=pairs, seeds=seeds)
    for task, metric in _common(pairs):
        if (one := _compare_metric(pairs, task, metric, seeds)) is not None:
            found.metrics.append(one)
    if not found.metrics:
        raise ConfigError(f"{names[0]} and {names[1]} were asked nothing alike: evaluate both with the same tasks and settings")
    return found


def _by_seed(
    first: Sequence[Evaluation], second: Sequence[Evaluation], names: tuple[str, str]
) -> list[tuple[Evaluation, Evaluation]]:
    ones, twos = ({one.seed: one for one in side} for side in (first, second))
    if len(ones) < len(first) or len(twos) < len(second):
        raise ConfigError("--seeds: two runs of a side have one seed; name the runs, with commas between them")
    both = sorted(ones.keys() & twos.keys())
    if not both:
        told = f"{sorted(ones)} of {names[0]}, {sorted(twos)} of {names[1]}"
        raise ConfigError(f"--seeds: the sides have no seed in common: {told}")
    return [(ones[seed], twos[seed]) for seed in both]


def _common(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[tuple[str, str]]:
    def metrics(one: Evaluation) -> dict[tuple[str, str], None]:
        return {(line["task"], metric): None for line in one.items.values() for metric in line["values"]}

    first = metrics(pairs[0][0])
    return [name for name in first if all(name in metrics(one) for pair in pairs for one in pair)]


def _compare_metric(
    pairs: Sequence[tuple[Evaluation, Evaluation]], task: str, metric: str, seeds: bool
) -> MetricComparison | None:
    rows: list[tuple[Any, Any, int, str]] = []
    unpaired = 0
    for number, (one, two) in enumerate(pairs):
        own, others = one.items, two.items
        keys = {key for key in own.keys() | others.keys() if key[0] == task}
        alike = sorted(key for key in keys if key in own and key in others and own[key]["hash"] == others[key]["hash"])
        unpaired += len(keys) - len(alike)
        values = ((own[key], others[key]) for key in alike)
        rows += [(a["values"].get(metric), b["values"].get(metric), number, a["hash"]) for a, b in values]
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    unit = ""
    if rows and all(_is_pair(value) for value in (*first, *second)):
        first, second, unit = _per_unit(first), _per_unit(second), "nats of log-likelihood a unit"
    if not rows or not all(isinstance(value, (int, float)) for value in (*first, *second)):
        return None
    found = judge([a - b for a, b in zip(first, second, strict=True)], groups=[row[2] for row in rows] if seeds else None)
    better_up = pairs[0][0].report.get(METRICS, {}).get(task, {}).get(metric, True)
    if metric == "perplexity" and not unit:
        unit = "nats of log-likelihood an item"
    return MetricComparison(
        task=task,
        metric=metric,
        higher_is_better=bool(better_up) or bool(unit),
        first=sum(first) / len(first),
        second=sum(second) / len(second),
        found=found,
        unpaired=unpaired,
        hash=hash_of(task, metric, [row[3] for row in rows]),
        unit=unit,
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == _PER_UNIT and all(isinstance(one, (int, float)) for one in value)


def _per_unit(values: Sequence[Any]) -> list[float]:
    """Values whose mean is the quotient of the sums, and whose spread is that of the quotient to first order."""
    total, units = sum(value[0] for value in values), sum(value[1] for value in values)
    quotient, mean = total / units, units / len(values)
    return [quotient + (a - quotient * b) / mean for a, b in values]


def differing(compared: Compared, most: int = 20) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Items that one side gets right and the other wrong: (line of the first, line of the second, metric), some of each task."""
    shown: dict[str, int] = {}
    first, second = compared.pairs[0]
    for one in compared.metrics:
        if one.metric not in ("acc", "exact_match"):
            continue
        for key, line in first.items.items():
            other = second.items.get(key)
            if key[0] != one.task or other is None or other["hash"] != line["hash"] or shown.get(one.task, 0) >= most:
                continue
            if line["values"].get(one.metric) != other["values"].get(one.metric):
                shown[one.task] = shown.get(one.task, 0) + 1
                yield line, other, one.metric
