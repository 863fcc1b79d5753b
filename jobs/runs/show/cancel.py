"""Cancel runs at a user's request: many of one cluster in one request, where its backend can."""

from collections.abc import Iterator, Sequence

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import final_outcome, find_run
from ropewalk.jobs.runs.show.view import view_of


def cancel_runs(words: Sequence[str]) -> Iterator[str]:
    """Ask for the runs to end, and for their children, such as a sweep's trials. Yields a line for each run.

    Raises ConfigError before any is cancelled.
    """
    named = list(map(find_run, words))
    runs = list({run.id: run for run in [*named, *(child for run in named for child in _open_children(run))]}.values())
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
            yield f"{run.id} is over already: {over[run.id]}"
        elif outcome is not None:
            yield f"{run.id} is {outcome.state.lower()}: {outcome.cause}"
        else:
            yield f"cancelling {run.id}: it saves a checkpoint and exits; `ropewalk wait {run.id}` returns when it has"


def _open_children(run: RunDir) -> list[RunDir]:
    """The run's children that are not over, and theirs, as far as this machine sees them: the run that started them may be gone.

    Those that this machine does not see, the run itself ends.
    """
    children = [child for child in view_of(run).children() if (child.path / "run.yaml").is_file()]
    return [each for child in children if final_outcome(child) is None for each in (child, *_open_children(child))]
