"""Cancellation of runs and their children, with one request per cluster."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import final_outcome, find_run
from ropewalk.jobs.runs.show.view import view_of


class Cancelled(NamedTuple):
    """A run that was cancelled, or is about to end."""

    run: str
    status: Literal["cancelling", "cancelled", "over"]  # over: it had ended before
    state: RunState | None  # None while it is being cancelled
    message: str


def cancel_runs(refs: Sequence[str]) -> Iterator[Cancelled]:
    """Cancel runs and their children, such as a sweep's trials, and yield each of them.

    Raises ConfigError before any run is cancelled.
    """
    selected = list(map(find_run, refs))
    runs = list({run.id: run for run in [*selected, *(child for run in selected for child in _open_children(run))]}.values())
    over = {run.id: outcome.state for run in runs if (outcome := final_outcome(run))}
    clusters: dict[str, list[RunDir]] = {}
    for run in runs:
        if run.id not in over:
            view_of(run).before_cancel()
            clusters.setdefault(str(run.record.get("cluster", "local")), []).append(run)
    for cluster, mine in clusters.items():
        load_backend(cluster).cancel_many(mine)
    for run in runs:
        outcome = final_outcome(run)
        if run.id in over:
            yield Cancelled(run.id, "over", over[run.id], f"{run.id} has already ended: {over[run.id]}")
        elif outcome is not None:
            yield Cancelled(run.id, "cancelled", outcome.state, f"{run.id} is {outcome.state.lower()}: {outcome.cause}")
        else:
            message = f"cancelling {run.id}: it {view_of(run).on_cancel} and exits; `ropewalk wait {run.id}` returns when it has"
            yield Cancelled(run.id, "cancelling", None, message)


def _open_children(run: RunDir) -> list[RunDir]:
    """Return the descendants of a run that have not ended, as far as this machine can access them.

    They are cancelled here since their parent may be gone; the parent ends the others.
    """
    children = [child for child in view_of(run).children() if (child.path / "run.yaml").is_file()]
    return [each for child in children if final_outcome(child) is None for each in (child, *_open_children(child))]
