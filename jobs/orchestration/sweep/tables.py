"""A sweep as tables for people: its trials by metric, the best so far, what was spent and saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ropewalk.cluster.text import format_parameters, format_value
from ropewalk.jobs.orchestration.sweep.results import SweepResults, TrialResult, format_metric
from ropewalk.jobs.runs.show.tables import COLORS, duration, progress_words, run_page, table

COLORS_OF_TRIALS = {**COLORS, "STOPPED": "bright_black", "PAUSED": "yellow"}
MOST_COLUMNS = 5  # parameters with a column of their own; more are told in one
LIVE_ROWS = 12  # of the table under a bar


def sweep_page(found: Mapping[str, Any], results: SweepResults) -> RenderableType:
    """What `show` prints of a sweep: the run that it is, then its trials. `found` is what `status.details` says."""
    return Group(run_page({**found, "results": {}, "metrics": {}}), *sweep_parts(results))


def sweep_ending(results: SweepResults) -> RenderableType:
    """What stands at the end of a followed sweep, and what one does next."""
    name = results.run.id
    next_steps = table("", "", title="next")
    next_steps.show_header = False
    next_steps.add_row(f"ropewalk best {name} best.yaml", f"the best configuration, for `ropewalk run {results.job} -c`")
    next_steps.add_row(f"ropewalk confirm {name}", "runs it and the runner-up with new seeds, and says whether the win is real")
    next_steps.add_row(f"ropewalk show {name} --plot", "pictures, and all of it on one page")
    return Group(*sweep_parts(results), next_steps)


def sweep_parts(results: SweepResults) -> list[RenderableType]:
    """What `show` prints of a sweep, besides what it prints of every run."""
    if not results.trials:
        return [Text("no trial has begun yet", style="dim")]
    parts: list[RenderableType] = [_summary(results), trials_table(results.ranked, results)]
    failed = [trial for trial in results.trials if trial.state == "FAILED"]
    if failed:
        parts.append(Text(f"`ropewalk why {results.run.id}` groups the causes of {len(failed)} failed trials", style="dim"))
    return parts


def _summary(results: SweepResults) -> RenderableType:
    head = table("", "", title="sweep")
    head.show_header = False
    head.add_row("trials", trials_words(results))
    best = results.best
    if best is not None and best.metric is not None:
        goal = "lowest" if results.mode == "min" else "highest"
        value = f"{results.metric} {format_metric(best.metric)} ({goal})"
        head.add_row("best so far", f"{value}, trial {best.trial} at step {best.steps:,}")
        head.add_row("", Text(format_parameters(best.parameters), style="bold"))
    head.add_row("spent", f"{results.spent:,} steps in {duration(results.seconds)} of trials{_share(results)}")
    if results.saved:
        head.add_row("saved", f"{results.saved:,} steps, by stopping {results.by_state.get('STOPPED', 0)} trials early")
    return head


def _share(results: SweepResults) -> str:
    full = results.full
    return f": {results.spent / full:.0%} of the {full:,} that all to the end would take" if full else ""


def trials_words(results: SweepResults) -> str:
    """`12 of 16 begun: 1 running, 8 stopped, 3 succeeded`."""
    begun = sum(1 for trial in results.trials if trial.runs)
    return f"{begun} of {results.wanted} begun: {results.states}" if results.wanted else f"{begun} begun: {results.states}"


def trials_table(trials: Sequence[TrialResult], results: SweepResults) -> RenderableType:
    """One line per trial; the best is bold, those that were stopped are dim."""
    keys = results.keys
    own = keys if len(keys) <= MOST_COLUMNS else []
    columns = [f">{_short_name(key, keys)}" for key in own] or ["PARAMETERS"]
    made = table(">TRIAL", "STATE", f">{results.metric}", ">STEPS", ">TOOK", *columns, "RUN")
    best = results.best
    for trial in trials:
        cells = [format_value(trial.parameters[key]) if key in trial.parameters else "" for key in own]
        made.add_row(
            str(trial.trial),
            _state(trial),
            "" if trial.metric is None else format_metric(trial.metric),
            progress_words({"step": trial.steps, "steps": trial.steps_full}).removeprefix("step ") if trial.runs else "",
            duration(trial.seconds) if trial.runs else "",
            *(cells or [format_parameters(trial.parameters)]),
            f"{trial.run or ''}{f' (of {len(trial.runs)})' if len(trial.runs) > 1 else ''}",
            style="bold" if best is not None and trial.trial == best.trial else "dim" if trial.state == "STOPPED" else "",
        )
    return made


def _state(trial: TrialResult) -> Text:
    """The trial's state, and that of its run where its scheduler has another word for it: pending, requeued."""
    state = Text(trial.state, style=COLORS_OF_TRIALS.get(trial.state, ""))
    if trial.run_state and trial.run_state != trial.state:
        state.append(f" ({trial.run_state})", style=COLORS.get(trial.run_state, ""))
    return state


def _short_name(key: str, keys: Sequence[str]) -> str:
    """`lr` of `optim.lr`, where no other key ends so."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def live_table(results: SweepResults) -> RenderableType:
    """The best trials so far, for a terminal that is being watched."""
    shown = results.ranked[:LIVE_ROWS]
    more = len(results.ranked) - len(shown)
    rest = [Text(f"and {more} more: `ropewalk show {results.run.id}`", style="dim")] if more else []
    return Group(trials_table(shown, results), *rest)
