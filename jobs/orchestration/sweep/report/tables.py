"""Terminal tables of a sweep: trials by metric, the best so far, steps spent and saved."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ropewalk.cluster.text import format_parameters, format_value
from ropewalk.jobs.orchestration.sweep.report.outlook import chance_of_better, expected_best
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult, format_metric
from ropewalk.jobs.runs.show.tables import COLORS, duration, progress_words, run_page, table

TRIAL_COLORS = {**COLORS, "STOPPED": "bright_black", "PAUSED": "yellow"}
MOST_COLUMNS = 3  # with more parameters, all of them share one column
MORE = 10  # trials for which the summary names the chance of a better one
LIVE_ROWS = 12  # rows of the table below a progress bar


def sweep_page(details: Mapping[str, Any], results: SweepResults) -> RenderableType:
    """Return the page of `show`: the run, given by `status.details`, then its trials."""
    return Group(run_page({**details, "results": {}, "metrics": {}}), *sweep_parts(results))


def sweep_ending(results: SweepResults) -> RenderableType:
    """Return the final page of a followed sweep."""
    return Group(*sweep_parts(results))


def sweep_parts(results: SweepResults) -> list[RenderableType]:
    """Return the parts of a sweep's page below those of every run."""
    if not results.trials:
        return [Text("no trial has started yet", style="dim")]
    parts: list[RenderableType] = [_summary(results), trials_table(results.ranked, results)]
    failed = [trial for trial in results.trials if trial.state == "FAILED"]
    if failed:
        parts.append(Text(f"see `ropewalk why {results.run.id}` for the causes of {len(failed)} failed trials", style="dim"))
    return parts


def _summary(results: SweepResults) -> RenderableType:
    head = table("", "", title="sweep")
    head.show_header = False
    for name, text in summary_rows(results):
        head.add_row(name, Text(text, style="" if name else "bold"))
    return head


def summary_rows(results: SweepResults) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a sweep's summary; the parameters of the best trial have no name."""
    yield "trials", trials_summary(results)
    best = results.best
    if best is not None and best.metric is not None:
        goal = "lowest" if results.mode == "min" else "highest"
        value = f"{results.metric} {format_metric(best.metric)} ({goal})"
        yield "best so far", f"{value}, trial {best.trial} at step {best.steps:,}"
        yield "", format_parameters(best.parameters)
        expected = expected_best(results)
        if expected is not None:
            yield "new seeds", f"expect {expected.text}"
        yield "more trials", f"{MORE} more find a better one with a probability of at least {chance_of_better(results, MORE):.0%}"
    planned = f" of {results.full:,} planned" if results.full else ""
    yield "spent", f"{results.spent:,}{planned} steps in {duration(results.seconds)} of trials"
    if results.saved:
        yield "saved", f"{results.saved:,} steps, by stopping {results.by_state.get('STOPPED', 0)} trials early"


def steps_words(trial: TrialResult) -> str:
    """Return the steps of a trial such as `120/300`; empty if it has not started."""
    return progress_words({"step": trial.steps, "steps": trial.steps_full}).removeprefix("step ") if trial.runs else ""


def trials_summary(results: SweepResults) -> str:
    """Return a summary such as `12 of 16 started: 1 running, 8 stopped, 3 succeeded`."""
    started = sum(1 for trial in results.trials if trial.runs)
    return (
        f"{started} of {results.wanted} started: {results.states}" if results.wanted else f"{started} started: {results.states}"
    )


def trials_table(trials: Sequence[TrialResult], results: SweepResults) -> RenderableType:
    """Return a table with one line per trial; the best is bold, stopped ones are dim."""
    keys = results.keys
    column_keys = keys if len(keys) <= MOST_COLUMNS else []
    columns = [f">{_short_name(key, keys)}" for key in column_keys] or ["PARAMETERS"]
    rows = table(">TRIAL", "STATE", f">{results.metric}", ">STEPS", ">TOOK", *columns, "RUN", dropped=("TOOK", "STEPS", "RUN"))
    best = results.best
    for trial in trials:
        cells = [format_value(trial.parameters[key]) if key in trial.parameters else "" for key in column_keys]
        rows.add_row(
            str(trial.trial),
            _state(trial),
            "" if trial.metric is None else format_metric(trial.metric),
            steps_words(trial),
            duration(trial.seconds) if trial.runs else "",
            *(cells or [format_parameters({_short_name(key, keys): value for key, value in trial.parameters.items()})]),
            f"{trial.run or ''}{f' (of {len(trial.runs)})' if len(trial.runs) > 1 else ''}",
            style="bold" if best is not None and trial.trial == best.trial else "dim" if trial.state == "STOPPED" else "",
        )
    return rows


def _state(trial: TrialResult) -> Text:
    """Return the trial's state, and its run's state if that differs, such as pending or requeued."""
    state = Text(trial.state, style=TRIAL_COLORS.get(trial.state, ""))
    if trial.run_state and trial.run_state != trial.state:
        state.append(f" ({trial.run_state})", style=COLORS.get(trial.run_state, ""))
    return state


def _short_name(key: str, keys: Sequence[str]) -> str:
    """Return `lr` for `optim.lr` if no other key ends with it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def live_table(results: SweepResults) -> RenderableType:
    """Return the table of the best trials for a followed sweep."""
    shown = results.ranked[:LIVE_ROWS]
    more = len(results.ranked) - len(shown)
    rest = [Text(f"and {more} more: `ropewalk show {results.run.id}`", style="dim")] if more else []
    return Group(trials_table(shown, results), *rest)
