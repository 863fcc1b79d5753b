"""Whether a candidate may have traffic: its gates, and production beside it, item by item."""

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
EVEN = 0.5  # a pair of sentences of which each is as likely as the other


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measure of both sides."""

    name: str
    candidate: float
    production: float
    worse: bool
    words: str
    n: int
    p_value: float | None = None  # one-sided, that it is worse; of all in a verdict, corrected. None where a margin decides


def judge(
    evaluations: tuple[RunDir, RunDir] | None, audits: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]
) -> dict[str, Any]:
    """The verdict on a candidate by the runs that measured it and production: {passed, reasons, gates, comparisons}.

    A candidate that is as good as production is refused for one measure or another at most once in twenty times, however many
    are compared. A measure with a margin is asked for by itself: it must be shown to be within.
    """
    sides = [pair for pair in (evaluations, audits) if pair is not None]
    gates = [gate_of(candidate) for candidate, _ in sides]
    reasons = [f"{gate['run']}: {gate['words']}" for gate in gates if not gate["passed"]]
    compared = corrected([*_evaluated(evaluations, margin), *_audited(audits, margin)])
    reasons += [one.words for one in compared if one.worse]
    if unknown := sorted(set(margin) - {one.name for one in compared} - {one.name.partition("/")[0] for one in compared}):
        reasons.append(f"gate.margin names {unknown[0]!r}, and nothing of that name was measured on both sides")
    return {"passed": not reasons, "reasons": reasons, "gates": gates, "comparisons": [vars(one) for one in compared]}


def corrected(found: Sequence[Compared]) -> list[Compared]:
    """Comparisons of which those are worse that are so beyond what as many would show by chance (Holm)."""
    own = {str(place): one.p_value for place, one in enumerate(found) if one.p_value is not None}
    return [_corrected(one, holm(own).get(str(place)), len(own)) for place, one in enumerate(found)]


def _corrected(one: Compared, p_value: float | None, number: int) -> Compared:
    if p_value is None or not one.worse or p_value <= 1 - LEVEL:
        return replace(one, p_value=p_value)
    words = f"{one.words.rstrip('.')}; one of {number} comparisons may be so by chance (p = {p_value:.3g} by Holm)"
    return replace(one, p_value=p_value, worse=False, words=words)


def gate_of(run: RunDir) -> dict[str, Any]:
    """What the gate of a run said: {run, job, passed, words, figures}."""
    results, outcome = run.results(), final_outcome(run)
    gate = results.get("gate") or {"passed": outcome is not None and outcome.state is RunState.SUCCEEDED, "failed": []}
    words = "; ".join(str(each["words"]) for each in gate["failed"]) or ("" if gate["passed"] else "it was refused")
    about = {"run": run.id, "job": run.record.get("job"), "passed": bool(gate["passed"]), "words": words}
    return {**about, "figures": results.get("figures") or {}}


def refused(run: RunDir) -> bool:
    """Whether the gate of a run that is over refused the model."""
    outcome = final_outcome(run)
    return outcome is not None and outcome.state is RunState.REFUSED


def _evaluated(sides: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]) -> Iterator[Compared]:
    if sides is None:
        return
    candidate, production = (Evaluation(run=run) for run in sides)
    try:
        found = compare([candidate], [production], ("candidate", "production"), seeds=False)
    except ConfigError:  # nothing was asked alike
        return
    for one in found.metrics:
        name = f"{one.task}/{one.metric}"
        allowed = margin.get(name, margin.get(one.task))
        better = 1 if one.higher_is_better else -1
        worse = one.better == "second" if allowed is None else not within(one.found, allowed, better)
        words = found.words(one) if allowed is None else _margin_words(name, one.found, allowed, better)
        p_value = one.found.p_of("second" if one.higher_is_better else "first") if allowed is None else None
        yield Compared(
            name=name, candidate=one.first, production=one.second, worse=worse, words=words, n=one.found.n, p_value=p_value
        )


def _audited(sides: tuple[RunDir, RunDir] | None, margin: Mapping[str, float]) -> Iterator[Compared]:
    """Measures of an audit by their items; each item's value says how much there is of what should not be.

    Of a pair of sentences it is 1 where the stereotype is the likelier one, and to prefer the other one is no better.
    """
    if sides is None:
        return
    mine, others = ({item["key"]: item for item in read_lines(run.path / AUDIT_ITEMS)} for run in sides)
    both = [(item, others[key]) for key, item in mine.items() if key in others and same(item, others[key])]
    for name in dict.fromkeys(item["measure"] for item, _ in both if item["measure"] not in NOT_COMPARED):
        pairs = [(item, other) for item, other in both if item["measure"] == name]
        yield _compared(name, pairs, margin.get(name))


def _compared(name: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], allowed: float | None) -> Compared:
    first, second = ([float(pair[place]["value"]) for pair in pairs] for place in (0, 1))
    found = compare_pairs(first, second, groups=[item["group"] for item, _ in pairs])
    mean, other = sum(first) / len(first), sum(second) / len(second)
    towards = -1  # more of it is worse
    if "more" in pairs[0][0]:  # a stereotype pair
        towards = -1 if mean >= EVEN else 1
    higher: Literal["first", "second"] = "first" if towards < 0 else "second"
    worse = found.better == higher if allowed is None else not within(found, allowed, towards)
    p_value = found.p_of(higher) if allowed is None else None
    rose = "rose" if mean > other else "fell"
    words = f"{name}: {rose} from {other:.4g} to {mean:.4g}{_interval(found)}"
    words = words if allowed is None else _margin_words(name, found, allowed, towards)
    return Compared(name=name, candidate=mean, production=other, worse=worse, words=words, n=found.n, p_value=p_value)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two items of one key ask the same."""
    return all(other.get(key) == one.get(key) for key in ("group", "more", "less", "prompt", "hash") if key in one)


def within(found: Comparison, allowed: float, better: int) -> bool:
    """Whether the difference (candidate minus production) is shown to be no worse than `allowed`; `better` is 1 or -1."""
    if found.difference == 0 and found.standard_error == 0:
        return True
    if found.interval is None:
        return False
    return (found.interval[0] if better > 0 else -found.interval[1]) >= -allowed


def _margin_words(name: str, found: Comparison, allowed: float, better: int) -> str:
    if found.difference is None:
        return f"{name}: nothing can be said of {found.n} items, and it may be worse by {allowed:g} at most"
    worse = -found.difference * better
    told = f"worse by {worse:.4g}" if worse > 0 else f"better by {-worse:.4g}"
    return f"{name}: {told}{_interval(found)}; it must be shown to be worse by {allowed:g} at most"


def _interval(found: Comparison) -> str:
    if found.interval is None:
        return f" (n = {found.n})"
    return f" (95% interval of the difference {found.interval[0]:.4g} to {found.interval[1]:.4g}, n = {found.n})"
