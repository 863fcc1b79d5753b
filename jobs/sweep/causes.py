"""What became of a sweep's trials, in lines for `why`: how many ended how, and why those that failed did."""

from cluster.run.directory import RunDir
from cluster.run.files import read_json
from cluster.spec import RunState
from cluster.text import counted
from jobs.sweep.records import path_of
from jobs.sweep.results import Answers, metric_word, parameter_words, read_sweep

MOST_NAMED = 8  # trials named of one cause


def trials_told(run: RunDir) -> list[str]:
    """Trials by state, the best so far, and each cause of failed trials once."""
    answers = read_sweep(run)
    if not answers.trials:
        return ["no trial has begun"]
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(answers.by_state.items()))
    lines = [f"{len(answers.trials)} of {answers.wanted or len(answers.trials)} trials: {states}"]
    best = answers.best
    if best is not None and best.metric is not None:
        value = f"{answers.metric} {metric_word(best.metric)}"
        lines.append(f"best: trial {best.trial}, {value} ({parameter_words(best.parameters)})")
    return [*lines, *causes(answers)]


def causes(answers: Answers) -> list[str]:
    """Why trials failed, each cause once, the most frequent first: `2 trials failed (3, 8): rank 0: ...`."""
    grouped: dict[str, list[int]] = {}
    for trial in answers.trials:
        if trial.state == RunState.FAILED:
            grouped.setdefault(trial.cause or "no cause was recorded", []).append(trial.trial)
    lines = []
    for cause, trials in sorted(grouped.items(), key=lambda item: -len(item[1])):
        named = ", ".join(map(str, trials[:MOST_NAMED])) + (", ..." if len(trials) > MOST_NAMED else "")
        lines.append(f"{counted(len(trials), 'trial')} failed ({named}): {cause}")
    return lines


def role_told(run: RunDir) -> str | None:
    """What a run is in the sweep that it belongs to, and whether that stopped it; None for a run of no sweep."""
    parent, trial = run.parent, run.record.get("trial")
    if parent is None or trial is None:
        return None
    record = read_json(path_of(parent, int(trial))) or {}
    if record.get("state") == "STOPPED":
        step = record.get("stopped_at")
        after = f" after step {step}" if step is not None else ""
        return f"It is trial {trial} of {parent.id}, which stopped it{after}: {record.get('cause') or 'no cause was recorded'}."
    return f"It is trial {trial} of {parent.id}."
