"""The report of running the best configuration again: means, the difference, and whether the win is real, in plain words."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import format_parameters
from ropewalk.jobs.orchestration.sweep.confirm import Candidate, values_of
from ropewalk.jobs.orchestration.sweep.results import SweepResults, format_metric
from ropewalk.jobs.results.compare import Comparison, judge
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.runs.show.follow import POLL_SECONDS, Watch
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.show.tables import table

ROUNDING = 1e-9  # a smaller spread, of the difference, is that of floating point


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds."""

    mean: float | None
    standard_error: float | None
    n: int


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and its standard error; the latter needs two values."""
    mean = statistics.fmean(values) if values else None
    return Mean(mean=mean, standard_error=mean_error(values), n=len(values))


def compare(best: Mapping[int, float], other: Mapping[int, float], mode: str) -> Comparison:
    """Compare values by seed, positive where the first is better; only seeds that both have count, since one seed gives both
    the same data order.
    """
    sign = 1.0 if mode == "max" else -1.0
    return judge([sign * (best[seed] - other[seed]) for seed in sorted(best.keys() & other.keys())])


def is_real(found: Comparison) -> bool | None:
    """Whether the interval lies on the good side of 0; None where there are too few seeds to tell."""
    return None if found.interval is None else found.interval[0] > 0


# --- the report


def await_runs(runs: Sequence[RunDir], say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when all runs are over; `say` a line as each ends."""
    watches, done = [Watch(run) for run in runs], 0
    while watches:
        for watch in [watch for watch in watches if watch.over()]:
            watches.remove(watch)
            done += 1
            outcome = final_outcome(watch.run)
            word = outcome.state.value if outcome is not None else f"its process is gone ({watch.abandoned})"
            say(f"{watch.run.id}: {word} ({done} of {len(runs)} runs are over)")
        if watches:
            sleep(POLL_SECONDS)


def confirmation(results: SweepResults, found: Sequence[Candidate]) -> dict[str, Any]:
    """All that `confirm --json` prints."""
    best, other = found
    values = [values_of(results, candidate) for candidate in found]
    result = compare(values[0], values[1], results.mode)
    return {
        "sweep": results.run.id,
        "metric": results.metric,
        "mode": results.mode,
        "candidates": [_plain(candidate, own) for candidate, own in zip(found, values, strict=True)],
        "difference": result.difference,
        "standard_error": result.standard_error,
        "interval": result.interval,
        "n": result.n,
        "real": is_real(result),
        "words": verdict(results, best, other, result),
    }


def _plain(candidate: Candidate, values: Mapping[int, float]) -> dict[str, Any]:
    runs = {seed: run.id for seed, run in candidate.runs.items()}
    head = {"candidate": candidate.word, "trial": candidate.trial, "parameters": dict(candidate.parameters)}
    return {**head, "in_sweep": candidate.in_sweep, **vars(mean_of(list(values.values()))), "values": dict(values), "runs": runs}


def verdict(results: SweepResults, best: Candidate, other: Candidate, found: Comparison) -> str:
    """Whether the best configuration is better than the other one, in a sentence."""
    one, two = _name(best), _name(other)
    if found.difference is None or found.standard_error is None or found.interval is None:
        has = "no seed" if found.n == 0 else "one seed"
        return f"Nothing can be said: {has} has a value of both {one} and {two}; two are the least, and {_more(results, 5)}."
    by = f"by {format_metric(abs(found.difference))} ± {format_metric(found.standard_error)} of {results.metric}"
    basis = f"mean and standard error of {found.n} differences, each at one seed"
    if found.difference > 0 and found.standard_error <= ROUNDING * found.difference:
        return f"The win is real, and the seed changes nothing: {one} is better than {two} {by} at each of {found.n} seeds."
    high_end = found.interval[1]
    low, high = (format_metric(end) for end in found.interval)
    if is_real(found):
        return f"The win is real: {one} is better than {two} {by} ({basis}; 95% interval {low} to {high})."
    if high_end < 0:
        return f"The win is not reproduced: at new seeds {one} is worse than {two} {by} ({basis}; 95% interval {low} to {high})."
    way = "better" if found.difference > 0 else "worse"
    seen = f"{one} is {way} than {two} {by}, and that may be chance ({basis}; 95% interval {low} to {high} includes 0)"
    needed = found.pairs_needed
    advice = f"about {needed} seeds would show a difference of this size: {_more(results, needed)}" if needed else ""
    return f"The win is not shown: {seen}." + (
        f" {advice[:1].upper()}{advice[1:]}." if advice else " Take the cheaper of the two."
    )


def _more(results: SweepResults, seeds: int) -> str:
    return f"`ropewalk confirm {results.run.id} --seeds {seeds}` adds those that are missing"


def _name(candidate: Candidate) -> str:
    return "the base configuration" if candidate.trial is None else f"trial {candidate.trial}"


def confirmation_page(results: SweepResults, found: Mapping[str, Any]) -> RenderableType:
    """What `confirm` prints above its verdict."""
    seeds = sorted({int(seed) for candidate in found["candidates"] for seed in candidate["runs"]})
    columns = [f">seed {seed}" for seed in seeds]
    made = table("", ">IN THE SWEEP", *columns, ">MEAN", ">± SE", ">N", "PARAMETERS", title=f"{results.metric} at new seeds")
    for candidate in found["candidates"]:
        word = candidate["candidate"] + ("" if candidate["trial"] is None else f", trial {candidate['trial']}")
        cells = [_value(candidate["values"].get(seed)) for seed in seeds]
        mean, error = _value(candidate["mean"]), _value(candidate["standard_error"])
        words = format_parameters(candidate["parameters"])
        made.add_row(word, _value(candidate["in_sweep"]), *cells, mean, error, str(candidate["n"]), words)
    failed = [
        f"{run} has no value: `ropewalk why {run}`; `ropewalk resume {run}` tries it again"
        for candidate in found["candidates"]
        for seed, run in candidate["runs"].items()
        if seed not in candidate["values"]
    ]
    best = results.best
    if best is not None and best.lineage:
        failed.append("the population changed the best trial's parameters on the way; these runs have its last ones throughout")
    return Group(made, *[Text(line, style="dim") for line in failed])


def _value(value: float | None) -> str:
    return "" if value is None else format_metric(value)
