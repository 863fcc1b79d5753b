"""Paired comparison of two models or groups of runs: items with identical prompts are matched, others ignored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.results.compare import Comparison, judge
from ropewalk.jobs.results.score import hash_of
from ropewalk.jobs.runs.models.evaluations import METRICS, Evaluation

_PER_UNIT = 2  # length of an item's value for metrics per unit: summed log-likelihood, number of words or bytes


@dataclass(kw_only=True)
class MetricComparison:
    """Comparison of one metric of one task."""

    task: str
    metric: str
    higher_is_better: bool
    first: float  # mean over the paired items
    second: float
    test: Comparison
    unpaired: int  # items of only one side, or with different prompts
    hash: str
    unit: str = ""  # if it differs from the metric's unit

    @property
    def better(self) -> str | None:
        """The better side, or None if no difference is significant."""
        if self.higher_is_better or self.test.better is None:
            return self.test.better
        return "second" if self.test.better == "first" else "first"

    def plain(self) -> dict[str, Any]:
        """Return the comparison as plain values for JSON."""
        values = {key: value for key, value in vars(self).items() if key != "test"}
        return {**values, **self.test.plain(), "better": self.better}


@dataclass(kw_only=True)
class PairedComparison:
    """Comparison of two sides in all common metrics."""

    names: tuple[str, str]
    pairs: list[tuple[Evaluation, Evaluation]]
    seeds: bool  # the runs of a side differ in their seeds, and each seed is one observation
    metrics: list[MetricComparison] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the content of `compare --json`; `scores` are differences, first side minus second."""
        scores: dict[str, dict[str, Any]] = {}
        for each in self.metrics:
            score = {"value": each.test.difference, "standard_error": each.test.standard_error, "n": each.test.n}
            scores.setdefault(each.task, {})[each.metric] = {**score, "hash": each.hash}
        return {
            "first": self.names[0],
            "second": self.names[1],
            "runs": [[a.run.id, b.run.id] for a, b in self.pairs],
            "seeds": self.seeds,
            "scores": scores,
            "comparisons": [{**each.plain(), "words": self.describe(each)} for each in self.metrics],
        }

    def describe(self, comparison: MetricComparison) -> str:
        """Describe the comparison of a metric in a sentence."""
        test, unit = comparison.test, f" {comparison.unit}" if comparison.unit else ""
        name = f"{comparison.task}/{comparison.metric}"
        if test.interval is None or test.smallest_difference is None or test.difference is None:
            return f"{name}: not comparable with {test.groups} {self._observations}; at least two are needed."
        low, high = test.interval
        basis = f"95% interval {low:.4g} to {high:.4g}, p = {test.p_value:.3g}, n = {test.n}"
        if self.seeds:
            basis += f" over {test.groups} seeds"
        if comparison.better is None and test.alike and test.difference:
            return (
                f"{name}: no significant difference ({test.difference:+.4g}{unit}, equal in all of {test.groups} "
                f"{self._observations}, which are too few; p = {test.p_value:.3g}, n = {test.n})."
            )
        if comparison.better is None:
            return (
                f"{name}: no significant difference ({test.difference:+.4g}{unit}; {basis}); differences below "
                f"{test.smallest_difference:.4g}{unit} are not significant here, and one of "
                f"{test.detectable_difference:.4g}{unit} would be detected with 80% probability."
            )
        winner = self.names[0] if comparison.better == "first" else self.names[1]
        return f"{name}: {winner} is better, by {abs(test.difference):.4g}{unit} ({basis})."

    @property
    def _observations(self) -> str:
        return "seeds" if self.seeds else "items"


def compare(
    first: Sequence[Evaluation], second: Sequence[Evaluation], names: tuple[str, str], *, seeds: bool
) -> PairedComparison:
    """Compare both sides by paired items, with `seeds` also by runs paired by seed. Raises ConfigError if nothing pairs."""
    if not seeds and (len(first) > 1 or len(second) > 1):
        raise ConfigError(
            f"{names[0]} has {len(first)} evaluations, {names[1]} {len(second)}; add --seeds to compare them as groups, "
            "or name one run of each"
        )
    pairs = _by_seed(first, second, names) if seeds else [(first[0], second[0])]
    compared = PairedComparison(names=names, pairs=pairs, seeds=seeds)
    for task, metric in _common(pairs):
        if (comparison := _compare_metric(pairs, task, metric, seeds)) is not None:
            compared.metrics.append(comparison)
    if not compared.metrics:
        raise ConfigError(f"{names[0]} and {names[1]} have no items in common: evaluate both with the same tasks and settings")
    return compared


def _by_seed(
    first: Sequence[Evaluation], second: Sequence[Evaluation], names: tuple[str, str]
) -> list[tuple[Evaluation, Evaluation]]:
    first_by_seed, second_by_seed = ({each.seed: each for each in side} for side in (first, second))
    if len(first_by_seed) < len(first) or len(second_by_seed) < len(second):
        raise ConfigError("--seeds: two runs of a side have the same seed; list the runs, separated by commas")
    both = sorted(first_by_seed.keys() & second_by_seed.keys())
    if not both:
        seeds = f"{sorted(first_by_seed)} of {names[0]}, {sorted(second_by_seed)} of {names[1]}"
        raise ConfigError(f"--seeds: the sides have no seed in common: {seeds}")
    return [(first_by_seed[seed], second_by_seed[seed]) for seed in both]


def _common(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[tuple[str, str]]:
    def metrics(evaluation: Evaluation) -> dict[tuple[str, str], None]:
        return {(line["task"], metric): None for line in evaluation.items.values() for metric in line["values"]}

    first = metrics(pairs[0][0])
    return [name for name in first if all(name in metrics(each) for pair in pairs for each in pair)]


def _compare_metric(
    pairs: Sequence[tuple[Evaluation, Evaluation]], task: str, metric: str, seeds: bool
) -> MetricComparison | None:
    rows: list[tuple[Any, Any, int, str]] = []
    unpaired = 0
    for number, pair in enumerate(pairs):
        items, others = pair[0].items, pair[1].items
        keys = {key for key in items.keys() | others.keys() if key[0] == task}
        paired = sorted(key for key in keys if key in items and key in others and items[key]["hash"] == others[key]["hash"])
        unpaired += len(keys) - len(paired)
        values = ((items[key], others[key]) for key in paired)
        rows += [(a["values"].get(metric), b["values"].get(metric), number, a["hash"]) for a, b in values]
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    unit = ""
    if rows and all(_is_pair(value) for value in (*first, *second)):
        first, second, unit = _per_unit(first), _per_unit(second), "nats of log-likelihood per unit"
    if not rows or not all(isinstance(value, (int, float)) for value in (*first, *second)):
        return None
    test = judge([a - b for a, b in zip(first, second, strict=True)], groups=[row[2] for row in rows] if seeds else None)
    better_up = pairs[0][0].report.get(METRICS, {}).get(task, {}).get(metric, True)
    if metric == "perplexity" and not unit:
        unit = "nats of log-likelihood per item"
    return MetricComparison(
        task=task,
        metric=metric,
        higher_is_better=bool(better_up) or bool(unit),
        first=sum(first) / len(first),
        second=sum(second) / len(second),
        test=test,
        unpaired=unpaired,
        hash=hash_of(task, metric, [row[3] for row in rows]),
        unit=unit,
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == _PER_UNIT and all(isinstance(part, (int, float)) for part in value)


def _per_unit(values: Sequence[Any]) -> list[float]:
    """Return values with the quotient of the sums as their mean, and its first-order variance (delta method)."""
    total, units = sum(value[0] for value in values), sum(value[1] for value in values)
    quotient, mean = total / units, units / len(values)
    return [quotient + (a - quotient * b) / mean for a, b in values]


def differing(compared: PairedComparison, most: int = 20) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield items that only one side answers correctly, at most `most` per task: (line of the first, of the second, metric)."""
    shown: dict[str, int] = {}
    first, second = compared.pairs[0]
    for each in compared.metrics:
        if each.metric not in ("acc", "exact_match"):
            continue
        for key, line in first.items.items():
            other = second.items.get(key)
            if key[0] != each.task or other is None or other["hash"] != line["hash"] or shown.get(each.task, 0) >= most:
                continue
            if line["values"].get(each.metric) != other["values"].get(each.metric):
                shown[each.task] = shown.get(each.task, 0) + 1
                yield line, other, each.metric
