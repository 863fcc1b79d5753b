"""A sweep's trials for W&B: a table and a summary, handed over whenever a trial begins or ends."""

import json
import time
import zlib
from typing import Any

from cluster.run.directory import RunDir
from jobs.sweep.results import Answers, SweepReader

TABLE_SECONDS = 15.0  # between two tables; the last one is that of the end
STATES = ("pending", "running", "paused", "succeeded", "stopped", "failed", "cancelled")
COLUMNS = ("trial", "state", "metric", "best_metric", "steps", "steps_spent", "seconds", "run", "cause")


class TrialsTable:
    """Reads the sweep and knows whether W&B has heard of what is there."""

    def __init__(self, run: RunDir) -> None:
        self._reader, self._next = SweepReader(run), 0.0

    def mark(self) -> int:
        """A number for what there is to tell now."""
        return _mark(self._reader.read())

    def hand_over(self, wandb_run: Any, known: int | None, *, last: bool = False) -> int | None:
        """Tell W&B what is new since the mark `known`; the new mark, or None: nothing is new, or it can wait."""
        now = time.monotonic()
        if now < self._next and not last:
            return None
        self._next = now + TABLE_SECONDS
        answers = self._reader.read()
        mark = _mark(answers)
        if mark == (known or 0):
            return None
        wandb_run.log({**_numbers(answers), "sweep/trials": _table(answers)})
        wandb_run.summary.update(_summary(answers))
        return mark


def _mark(answers: Answers) -> int:
    told = [(trial.trial, trial.state, list(trial.runs)) for trial in answers.trials]
    return zlib.crc32(json.dumps(told).encode()) if told else 0


def _numbers(answers: Answers) -> dict[str, Any]:
    best = answers.best
    values: dict[str, Any] = {f"sweep/{state}": answers.by_state.get(state.upper(), 0) for state in STATES}
    values |= {"sweep/steps_spent": answers.spent, "sweep/steps_saved": answers.saved, "sweep/trial_seconds": answers.seconds}
    return values if best is None else {**values, f"sweep/best {answers.metric}": best.metric}


def _summary(answers: Answers) -> dict[str, Any]:
    """The best trial, as W&B's page of the sweep's run shows it."""
    best = answers.best
    if best is None:
        return {}
    parameters = {f"best/parameters/{key}": value for key, value in best.parameters.items()}
    return {"best/trial": best.trial, "best/run": best.run, "best/metric": best.metric, "best/steps": best.steps, **parameters}


def _table(answers: Answers) -> Any:
    import wandb

    keys = list(dict.fromkeys(key for trial in answers.trials for key in trial.parameters))
    rows = [
        [getattr(trial, name) for name in COLUMNS]
        + [_plain(trial.parameters[key]) if key in trial.parameters else None for key in keys]
        for trial in answers.ranked
    ]
    return wandb.Table(columns=[*COLUMNS, *keys], data=rows, allow_mixed_types=True)


def _plain(value: Any) -> Any:
    """A column takes numbers and words; a list or a mapping is its text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value)
