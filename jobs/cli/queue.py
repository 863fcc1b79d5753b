"""The commands `hold`, `release` and `priority` about runs that wait."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.cluster.run.directory import RunDir

RunRefs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="runs: ids, unique prefixes of ids, or directories", autocompletion=complete.runs),
]


def hold(run_refs: RunRefs, as_json: AsJson = False) -> None:
    """Keep waiting runs from starting until `release`."""
    from ropewalk.jobs.runs.show.queue import hold_run

    _report(run_refs, hold_run, "held", "is held: `ropewalk release {run}` lets it start", as_json)


def release(run_refs: RunRefs, as_json: AsJson = False) -> None:
    """Let held runs start again."""
    from ropewalk.jobs.runs.show.queue import release_run

    _report(run_refs, release_run, "released", "waits in the queue again", as_json)


def _report(refs: list[str], act: Callable[["RunDir"], None], status: str, message: str, as_json: bool) -> None:
    from ropewalk.jobs.runs.show.status import find_run

    runs = list(map(find_run, refs))
    for run in runs:
        act(run)
        if not as_json:
            print(f"{run.id} {message.format(run=run.id)}")
    if as_json:
        print_json([{"run": run.id, "status": status, "lowered_by": None} for run in runs])


def priority(
    run_ref: RunRef,
    lowered_by: Annotated[int, typer.Argument(min=0, metavar="AMOUNT", help="by how much it is lowered; 0 restores it")],
    as_json: AsJson = False,
) -> None:
    """Lower the priority of a waiting run. Users cannot raise it: lower that of other runs of yours instead."""
    from ropewalk.jobs.runs.show.queue import lower_priority
    from ropewalk.jobs.runs.show.status import find_run

    run = find_run(run_ref)
    lower_priority(run, lowered_by)
    if as_json:
        print_json({"run": run.id, "status": "lowered", "lowered_by": lowered_by})
    else:
        print(f"the priority of {run.id} is lowered by {lowered_by}" if lowered_by else f"{run.id} has its own priority again")
