"""Verdict on a candidate: the results of its gates, and a paired comparison with production."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.results.compare import Comparison, compare_pairs
from ropewalk.jobs.results.statistics import LEVEL
from ropewalk.jobs.runs.models.comparison import compare
from ropewalk.jobs.runs.models.evaluations import Evaluation
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.serving.drift.permutation import holm

AUDIT_ITEMS = "audit/items.jsonl"
NOT_COMPARED = frozenset({"counterfactual", "contamination"})
EVEN = 0.5  # value of a sentence pair without preference


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of the candidate and of production."""

    name: str
    candidate: float
    production: float
    worse: bool
    message: str
    n: int
    p_value: float | None = None  # one-sided, for worse; corrected within a verdict. None if a margin decides


def judge(
    evaluations: tuple[RunDir, RunDir] | None, audits: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]
) -> dict[str, Any]:
    """Return the verdict from the runs that measured the candidate and production: {passed, reasons, gates, comparisons}.

    A candidate as good as production is refused by chance at most once in twenty times, however many measures are compared. A
    measure with a margin is tested separately: it must be significantly within the margin.
    """
    sides = [pair for pair in (evaluations, audits) if pair is not None]
    gates = [gate_of(candidate) for candidate, _ in sides]
    reasons = [f"{gate['run']}: {gate['message']}" for gate in gates if not gate["passed"]]
    measures = correct_for_chance([*_compare_evaluations(evaluations, margin), *_compare_audits(audits, margin)])
    reasons += [measure.message for measure in measures if measure.worse]
    if unknown := sorted(
        set(margin) - {measure.name for measure in measures} - {measure.name.partition("/")[0] for measure in measures}
    ):
        reasons.append(f"gate.margin names {unknown[0]!r}, which was not measured on both sides")
    return {"passed": not reasons, "reasons": reasons, "gates": gates, "comparisons": [vars(measure) for measure in measures]}


def correct_for_chance(measures: Sequence[Measure]) -> list[Measure]:
    """Apply Holm's correction: a measure stays `worse` only if its corrected p-value is significant."""
    p_values = {str(index): measure.p_value for index, measure in enumerate(measures) if measure.p_value is not None}
    return [_correct(measure, holm(p_values).get(str(index)), len(p_values)) for index, measure in enumerate(measures)]


def _correct(measure: Measure, p_value: float | None, num_tests: int) -> Measure:
    if p_value is None or not measure.worse or p_value <= 1 - LEVEL:
        return replace(measure, p_value=p_value)
    message = f"{measure.message.rstrip('.')}; not significant among {num_tests} comparisons (p = {p_value:.3g} after Holm)"
    return replace(measure, p_value=p_value, worse=False, message=message)


def gate_of(run: RunDir) -> dict[str, Any]:
    """Return the gate's result of a run: {run, job, passed, message, figures}."""
    results, outcome = run.results(), final_outcome(run)
    gate = results.get("gate") or {"passed": outcome is not None and outcome.state is RunState.SUCCEEDED, "failed": []}
    message = "; ".join(str(failure["words"]) for failure in gate["failed"]) or ("" if gate["passed"] else "its gate refused it")
    about = {"run": run.id, "job": run.record.get("job"), "passed": bool(gate["passed"]), "message": message}
    return {**about, "figures": results.get("figures") or {}}


def is_refused(run: RunDir) -> bool:
    """Return True if the run has ended and its gate refused the model."""
    outcome = final_outcome(run)
    return outcome is not None and outcome.state is RunState.REFUSED


def _compare_evaluations(sides: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]) -> Iterator[Measure]:
    if sides is None:
        return
    candidate, production = (Evaluation(run=run) for run in sides)
    try:
        comparison = compare([candidate], [production], ("candidate", "production"), seeds=False)
    except ConfigError:  # no items in common
        return
    for metric in comparison.metrics:
        name = f"{metric.task}/{metric.metric}"
        allowed = margin.get(name, margin.get(metric.task))
        better = 1 if metric.higher_is_better else -1
        worse = metric.better == "second" if allowed is None else not within(metric.test, allowed, better)
        message = comparison.describe(metric) if allowed is None else _margin_message(name, metric.test, allowed, better)
        p_value = metric.test.p_of("second" if metric.higher_is_better else "first") if allowed is None else None
        yield Measure(
            name=name,
            candidate=metric.first,
            production=metric.second,
            worse=worse,
            message=message,
            n=metric.test.n,
            p_value=p_value,
        )


def _compare_audits(sides: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]) -> Iterator[Measure]:
    """Yield the measures of two audits, paired by item; a higher value is worse.

    For a sentence pair the value is 1 if the stereotype is more likely; preferring the other sentence is no improvement.
    """
    if sides is None:
        return
    items, production_items = ({item["key"]: item for item in read_lines(run.path / AUDIT_ITEMS)} for run in sides)
    shared = [
        (item, production_items[key])
        for key, item in items.items()
        if key in production_items and same_question(item, production_items[key])
    ]
    for name in dict.fromkeys(item["measure"] for item, _ in shared if item["measure"] not in NOT_COMPARED):
        pairs = [(item, other) for item, other in shared if item["measure"] == name]
        yield _compare_items(name, pairs, margin.get(name))


def _compare_items(name: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], allowed: float | None) -> Measure:
    first, second = ([float(pair[side]["value"]) for pair in pairs] for side in (0, 1))
    comparison = compare_pairs(first, second, groups=[item["group"] for item, _ in pairs])
    mean, production_mean = sum(first) / len(first), sum(second) / len(second)
    better = -1  # a higher value is worse
    if "more" in pairs[0][0]:  # a stereotype pair
        better = -1 if mean >= EVEN else 1
    higher: Literal["first", "second"] = "first" if better < 0 else "second"
    worse = comparison.better == higher if allowed is None else not within(comparison, allowed, better)
    p_value = comparison.p_of(higher) if allowed is None else None
    verb = "rose" if mean > production_mean else "fell"
    message = f"{name}: {verb} from {production_mean:.4g} to {mean:.4g}{_interval(comparison)}"
    message = message if allowed is None else _margin_message(name, comparison, allowed, better)
    return Measure(
        name=name, candidate=mean, production=production_mean, worse=worse, message=message, n=comparison.n, p_value=p_value
    )


def same_question(item: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True if two items with the same key hold the same question."""
    return all(other.get(key) == item.get(key) for key in ("group", "more", "less", "prompt", "hash") if key in item)


def within(comparison: Comparison, allowed: float, better: int) -> bool:
    """Return True if the interval of the difference (candidate - production) excludes a loss above `allowed`; `better` is 1 or
    -1.
    """
    if comparison.difference == 0 and comparison.standard_error == 0:
        return True
    if comparison.interval is None:
        return False
    return (comparison.interval[0] if better > 0 else -comparison.interval[1]) >= -allowed


def _margin_message(name: str, comparison: Comparison, allowed: float, better: int) -> str:
    if comparison.difference is None:
        return f"{name}: {comparison.n} items do not suffice for a test of its margin of {allowed:g}"
    worse = -comparison.difference * better
    change = f"worse by {worse:.4g}" if worse > 0 else f"better by {-worse:.4g}"
    return f"{name}: {change}{_interval(comparison)}; the interval must exclude a loss of more than {allowed:g}"


def _interval(comparison: Comparison) -> str:
    if comparison.interval is None:
        return f" (n = {comparison.n})"
    return f" (95% interval of the difference {comparison.interval[0]:.4g} to {comparison.interval[1]:.4g}, n = {comparison.n})"
