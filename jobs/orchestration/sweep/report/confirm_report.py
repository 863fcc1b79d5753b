"""Report of `ropewalk confirm`: means, their difference, and a verdict."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import format_parameters
from ropewalk.jobs.orchestration.sweep.report.confirm import Candidate, values_of
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, format_metric
from ropewalk.jobs.results.compare import Comparison, judge
from ropewalk.jobs.results.statistics import LEVEL, mean_error, t_quantile
from ropewalk.jobs.runs.show.follow import POLL_SECONDS, Watch
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.show.tables import table

LEAST_SEEDS = 3
ROUNDING = 1e-9  # a standard error below this share of the difference is floating-point noise


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard error (of two or more values) and number of the values."""
    mean = statistics.fmean(values) if values else None
    return {"mean": mean, "standard_error": mean_error(values), "n": len(values)}


def compare(best: Mapping[int, float], other: Mapping[int, float], mode: str) -> Comparison:
    """Compare values of the same seed, which gives both the same data order; positive differences favour the first.

    The standard error is at least that of the rounding of the values: differences that are equal only because the metric has
    few digits are no evidence.
    """
    sign, seeds = 1.0 if mode == "max" else -1.0, sorted(best.keys() & other.keys())
    result = judge([sign * (best[seed] - other[seed]) for seed in seeds])
    if result.difference is None or result.standard_error is None:
        return result
    unit = rounding_unit([values[seed] for values in (best, other) for seed in seeds])
    floor = unit / math.sqrt(6 * result.n)  # of a mean of differences; each value is off by up to half a unit, uniformly
    if result.standard_error >= floor:
        return result
    reach = t_quantile((1 + LEVEL) / 2, result.groups) * floor
    interval = (result.difference - reach, result.difference + reach)
    return replace(result, standard_error=floor, interval=interval, smallest_difference=reach)


def rounding_unit(values: Sequence[float]) -> float:
    """Return the unit of the last digit that any of the values has, such as 0.001."""
    digits = [int(Decimal(repr(value)).normalize().as_tuple().exponent) for value in values if math.isfinite(value)]
    return 10.0 ** min(0, *digits)


def is_real(comparison: Comparison) -> bool | None:
    """Return True if the interval lies above 0, or None if there are too few seeds."""
    return None if comparison.interval is None or comparison.n < LEAST_SEEDS else comparison.interval[0] > 0


# --- the report


def await_runs(runs: Sequence[RunDir], report: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until all runs have ended, and `report` a line for each."""
    watches, done = [Watch(run) for run in runs], 0
    while watches:
        for watch in [watch for watch in watches if watch.over()]:
            watches.remove(watch)
            done += 1
            outcome = final_outcome(watch.run)
            state = outcome.state.value if outcome is not None else f"its process is gone ({watch.abandoned})"
            report(f"{watch.run.id}: {state} ({done} of {len(runs)} runs have ended)")
        if watches:
            sleep(POLL_SECONDS)


def confirmation(results: SweepResults, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return the output of `confirm --json`."""
    best, other = candidates
    values = [values_of(results, candidate) for candidate in candidates]
    result = compare(values[0], values[1], results.mode)
    return {
        "sweep": results.run.id,
        "metric": results.metric,
        "mode": results.mode,
        "candidates": [_plain(candidate, by_seed) for candidate, by_seed in zip(candidates, values, strict=True)],
        "difference": result.difference,
        "standard_error": result.standard_error,
        "interval": result.interval,
        "n": result.n,
        "real": is_real(result),
        "words": verdict(results, best, other, result),
    }


def _plain(candidate: Candidate, values: Mapping[int, float]) -> dict[str, Any]:
    runs = {seed: run.id for seed, run in candidate.runs.items()}
    head = {"candidate": candidate.role, "trial": candidate.trial, "parameters": dict(candidate.parameters)}
    return {**head, "in_sweep": candidate.in_sweep, **mean_of(list(values.values())), "values": dict(values), "runs": runs}


def verdict(results: SweepResults, best: Candidate, other: Candidate, comparison: Comparison) -> str:
    """Return a sentence that says whether the best configuration is better than the other."""
    best_name, other_name = _name(best), _name(other)
    few = comparison.n < LEAST_SEEDS
    if few or comparison.difference is None or comparison.standard_error is None or comparison.interval is None:
        have = ("no seed has", "only one seed has", "only two seeds have")[min(comparison.n, LEAST_SEEDS - 1)]
        return f"No verdict: {have} values of both {best_name} and {other_name}, and three are needed; {_more(results, 5)}."
    by = f"by {format_metric(abs(comparison.difference))} ± {format_metric(comparison.standard_error)} of {results.metric}"
    basis = f"mean and standard error of {comparison.n} differences, each at one seed"
    if comparison.difference > 0 and comparison.standard_error <= ROUNDING * comparison.difference:
        return (
            f"The win is real, and independent of the seed: {best_name} is better than {other_name} {by}"
            f" at each of {comparison.n} seeds."
        )
    high_end = comparison.interval[1]
    evidence = f"{basis}; 95% interval {' to '.join(format_metric(end) for end in comparison.interval)}"
    if is_real(comparison):
        return f"The win is real: {best_name} is better than {other_name} {by} ({evidence})."
    if high_end < 0:
        return f"The win is not reproduced: at new seeds {best_name} is worse than {other_name} {by} ({evidence})."
    direction = "better" if comparison.difference > 0 else "worse"
    observed = f"{best_name} is {direction} than {other_name} {by}, which may be chance ({evidence} includes 0)"
    needed = comparison.pairs_needed
    advice = f"about {needed} seeds would make a difference of this size significant: {_more(results, needed)}" if needed else ""
    return f"The win is not significant: {observed}." + (
        f" {advice[:1].upper()}{advice[1:]}." if advice else " Use the cheaper configuration."
    )


def _more(results: SweepResults, seeds: int) -> str:
    return f"`ropewalk confirm {results.run.id} --seeds {seeds}` adds the missing ones"


def _name(candidate: Candidate) -> str:
    return "the base configuration" if candidate.trial is None else f"trial {candidate.trial}"


def confirmation_page(results: SweepResults, report: Mapping[str, Any]) -> RenderableType:
    """Return the tables that `confirm` prints above its verdict."""
    seeds = sorted({int(seed) for candidate in report["candidates"] for seed in candidate["runs"]})
    columns = [f">seed {seed}" for seed in seeds]
    means = table("", ">IN THE SWEEP", *columns, ">MEAN", ">± SE", ">N", "PARAMETERS", title=f"{results.metric} at new seeds")
    for candidate in report["candidates"]:
        role = candidate["candidate"] + ("" if candidate["trial"] is None else f", trial {candidate['trial']}")
        cells = [_value(candidate["values"].get(seed)) for seed in seeds]
        mean, error = _value(candidate["mean"]), _value(candidate["standard_error"])
        parameters = format_parameters(candidate["parameters"])
        means.add_row(role, _value(candidate["in_sweep"]), *cells, mean, error, str(candidate["n"]), parameters)
    notes = [
        f"{run} has no value: see `ropewalk why {run}`; `ropewalk resume {run}` retries it"
        for candidate in report["candidates"]
        for seed, run in candidate["runs"].items()
        if seed not in candidate["values"]
    ]
    best = results.best
    if best is not None and best.lineage:
        notes.append("population-based training changed the best trial's parameters; these runs use its last ones throughout")
    return Group(means, *[Text(line, style="dim") for line in notes])


def _value(value: float | None) -> str:
    return "" if value is None else format_metric(value)
