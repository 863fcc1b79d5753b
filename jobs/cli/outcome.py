"""Follow a run to its end and exit with its outcome."""

import sys
from typing import Any

import typer

from ropewalk.cluster.errors import EXIT_INTERRUPTED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.runs.show.follow import Watch, follow
from ropewalk.jobs.runs.show.show import ending, next_steps
from ropewalk.jobs.runs.show.status import final_object
from ropewalk.jobs.runs.show.tables import console
from ropewalk.jobs.runs.show.view import view_of


def follow_to_end(run: RunDir, as_json: bool) -> None:
    """Follow a run, print its result, and exit with its outcome. Ctrl-C ends the command, not the run."""
    exit_with_outcome(run, watch_to_end(run, as_json), as_json)


def watch_to_end(run: RunDir, as_json: bool) -> Watch:
    """Follow a run until it ends. Ctrl-C ends the command, not the run."""
    try:
        return follow(run, console(stderr=True), program_output=sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        hint = f"`ropewalk logs -f {run.id}` follows it, `ropewalk cancel {run.id}` ends it"
        sys.stderr.write(f"\n{run.id} keeps running; {hint}\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def exit_with_outcome(run: RunDir, watch: Watch, as_json: bool) -> None:
    """Print a run's result and exit with 0 if it succeeded, else with 1."""
    result: dict[str, Any] = final_object(run)
    succeeded = result["state"] == RunState.SUCCEEDED
    if not succeeded:
        reason = watch.abandoned or result.get("cause") or ""
        state = f"{result['state']}{f': {reason}' if reason else ''}"
        sys.stderr.write(f"{run.id} ended as {state}\n")
        console(stderr=True).print(next_steps(view_of(run), RunState(result["state"])), crop=False)
    if as_json:
        print_json(result)
    elif succeeded:
        console().print(ending(run, result), crop=False)
    raise typer.Exit(0 if succeeded else 1)
