"""End runs at a user's word: many of one cluster in one request, where its backend can."""

from collections.abc import Iterator, Sequence

from cluster.backends.profiles import load_backend
from cluster.run.directory import RunDir
from jobs.runs.remote import write_there
from jobs.runs.status import final_outcome, find_run
from jobs.sweep.records import SWEEP_CANCELLED, read_records
from jobs.sweep.results import is_sweep


def cancel_runs(words: Sequence[str]) -> Iterator[str]:
    """Ask for the runs to end, a sweep's with its trials; what to tell of each. Raises ConfigError before any is ended."""
    named = list(map(find_run, words))
    runs = list({run.id: run for run in [*named, *(trial for run in named for trial in _trials_of(run))]}.values())
    over = {run.id: outcome.state for run in runs if (outcome := final_outcome(run))}
    clusters: dict[str, list[RunDir]] = {}
    for run in runs:
        if run.id not in over and is_sweep(run):
            run.request_cancel()
            run.event(SWEEP_CANCELLED)
            write_there(run, run.requests.path.name)  # the driver has to know why its pod is taken away
        if run.id not in over:
            clusters.setdefault(str(run.record.get("cluster", "local")), []).append(run)
    for cluster, mine in clusters.items():
        load_backend(cluster).cancel_many(mine)
    for run in runs:
        outcome = final_outcome(run)
        if run.id in over:
            yield f"{run.id} is over already: {over[run.id]}"
        elif outcome is not None:
            yield f"{run.id} is {outcome.state.lower()}: {outcome.cause}"
        else:
            yield f"{run.id} is asked to save and leave; `ropewalk wait {run.id}` returns when it has"


def _trials_of(run: RunDir) -> list[RunDir]:
    """Runs of a sweep's trials that are not over: whoever drives the sweep may be gone."""
    if not is_sweep(run):
        return []
    found = [RunDir(run.path.parent / name) for record in read_records(run) if not record.state.final for name in record.runs]
    # where this machine does not see them, the sweep itself ends them
    return [trial for trial in found if (trial.path / "run.yaml").is_file() and final_outcome(trial) is None]
