"""A sweep as tables for people: its trials by metric, the best so far, what was spent and saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jobs.runs.tables import COLORS, duration, progress_words, run_page, table
from jobs.sweep.results import Answers, Trial, metric_word, parameter_words, value_word

COLORS_OF_TRIALS = {**COLORS, "STOPPED": "bright_black", "PAUSED": "yellow"}
MOST_COLUMNS = 5  # parameters with a column of their own; more are told in one
LIVE_ROWS = 12  # of the table under a bar


def sweep_page(found: Mapping[str, Any], answers: Answers) -> RenderableType:
    """What `show` prints of a sweep: the run that it is, then its trials. `found` is what `status.details` says."""
    return Group(run_page({**found, "results": {}, "metrics": {}}), *sweep_parts(answers))


def sweep_ending(answers: Answers) -> RenderableType:
    """What stands at the end of a followed sweep, and what one does next."""
    name = answers.run.id
    next_steps = table("", "", title="next")
    next_steps.show_header = False
    next_steps.add_row(f"ropewalk best {name} best.yaml", f"the best configuration, for `ropewalk run {answers.job} -c`")
    next_steps.add_row(f"ropewalk confirm {name}", "runs it and the runner-up with new seeds, and says whether the win is real")
    next_steps.add_row(f"ropewalk show {name} --plot", "pictures, and all of it on one page")
    return Group(*sweep_parts(answers), next_steps)


def sweep_parts(answers: Answers) -> list[RenderableType]:
    """What `show` prints of a sweep, besides what it prints of every run."""
    if not answers.trials:
        return [Text("no trial has begun yet", style="dim")]
    parts: list[RenderableType] = [_standing(answers), trials_table(answers.ranked, answers)]
    failed = [trial for trial in answers.trials if trial.state == "FAILED"]
    if failed:
        parts.append(Text(f"`ropewalk why {answers.run.id}` groups the causes of {len(failed)} failed trials", style="dim"))
    return parts


def _standing(answers: Answers) -> RenderableType:
    head = table("", "", title="sweep")
    head.show_header = False
    head.add_row("trials", trials_words(answers))
    best = answers.best
    if best is not None and best.metric is not None:
        goal = "lowest" if answers.mode == "min" else "highest"
        value = f"{answers.metric} {metric_word(best.metric)} ({goal})"
        head.add_row("best so far", f"{value}, trial {best.trial} at step {best.steps:,}")
        head.add_row("", Text(parameter_words(best.parameters), style="bold"))
    head.add_row("spent", f"{answers.spent:,} steps in {duration(answers.seconds)} of trials{_share(answers)}")
    if answers.saved:
        head.add_row("saved", f"{answers.saved:,} steps, by stopping {answers.by_state.get('STOPPED', 0)} trials early")
    return head


def _share(answers: Answers) -> str:
    full = answers.full
    return f": {answers.spent / full:.0%} of the {full:,} that all to the end would take" if full else ""


def trials_words(answers: Answers) -> str:
    """`12 of 16 begun: 1 running, 8 stopped, 3 succeeded`."""
    begun = sum(1 for trial in answers.trials if trial.runs)
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(answers.by_state.items()))
    return f"{begun} of {answers.wanted} begun: {states}" if answers.wanted else f"{begun} begun: {states}"


def trials_table(trials: Sequence[Trial], answers: Answers) -> RenderableType:
    """One line a trial; the best is bold, those that were stopped are dim."""
    keys = list(dict.fromkeys(key for trial in answers.trials for key in trial.parameters))
    own = keys if len(keys) <= MOST_COLUMNS else []
    columns = [f">{_short_name(key, keys)}" for key in own] or ["PARAMETERS"]
    made = table(">TRIAL", "STATE", f">{answers.metric}", ">STEPS", ">TOOK", *columns, "RUN")
    best = answers.best
    for trial in trials:
        cells = [value_word(trial.parameters[key]) if key in trial.parameters else "" for key in own]
        made.add_row(
            str(trial.trial),
            _state(trial),
            "" if trial.metric is None else metric_word(trial.metric),
            progress_words({"step": trial.steps, "steps": trial.steps_full}).removeprefix("step ") if trial.runs else "",
            duration(trial.seconds) if trial.runs else "",
            *(cells or [parameter_words(trial.parameters)]),
            f"{trial.run or ''}{f' (of {len(trial.runs)})' if len(trial.runs) > 1 else ''}",
            style="bold" if best is not None and trial.trial == best.trial else "dim" if trial.state == "STOPPED" else "",
        )
    return made


def _state(trial: Trial) -> Text:
    """The trial's state, and that of its run where its scheduler has another word for it: pending, requeued."""
    state = Text(trial.state, style=COLORS_OF_TRIALS.get(trial.state, ""))
    if trial.run_state and trial.run_state != trial.state:
        state.append(f" ({trial.run_state})", style=COLORS.get(trial.run_state, ""))
    return state


def _short_name(key: str, keys: Sequence[str]) -> str:
    """`lr` of `optim.lr`, where no other key ends so."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def live_table(answers: Answers) -> RenderableType:
    """The best trials so far, for a terminal that is being watched."""
    shown = answers.ranked[:LIVE_ROWS]
    more = len(answers.ranked) - len(shown)
    rest = [Text(f"and {more} more: `ropewalk show {answers.run.id}`", style="dim")] if more else []
    return Group(trials_table(shown, answers), *rest)
