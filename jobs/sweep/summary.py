"""What a sweep returns as its results: the best trial, and what it cost to find it."""

from typing import Any

from cluster.run.directory import RunDir
from jobs.sweep.results import read_sweep


def results_of(sweep: RunDir) -> dict[str, Any]:
    """Best trial, its run, parameters and metric; trials by state; steps spent and saved."""
    answers = read_sweep(sweep)
    best = answers.best
    return {
        "best_trial": best.trial if best else None,
        "best_run": best.run if best else None,
        "parameters": dict(best.parameters) if best else {},
        "metric": answers.metric,
        "best": best.metric if best else None,
        "trials": answers.by_state,
        "steps_spent": answers.spent,
        "steps_saved": answers.saved,
    }
