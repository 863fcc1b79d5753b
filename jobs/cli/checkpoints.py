"""The command `checkpoints`: the checkpoints of a training run, and whether they are intact."""

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.sharding.checkpoints.checkpoint_list import CheckpointSummary


def checkpoints(
    run_ref: RunRef,
    verify: Annotated[bool, typer.Option("--verify", help="read all files, and exit with 1 if any is damaged")] = False,
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints: step, size, ranks that saved it, age, and whether it is pinned, the best, and intact."""
    from ropewalk.cluster.errors import EXIT_FAILED, ConfigError
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
    from ropewalk.sharding.checkpoints.checkpoint_list import list_checkpoints
    from ropewalk.sharding.checkpoints.layout import LATEST_NAME

    run = find_run(run_ref)
    # the list of steps is there once somebody has looked for it
    if not run.model_record.is_file() and any(path.name != LATEST_NAME for path in run.checkpoints.glob("*")):
        raise ConfigError(f"{run.id}: a {run.record['job']} run trains no model; what its program saved is in {run.checkpoints}")
    summaries = list_checkpoints(checkpoint_folder(run), verify=verify)
    if as_json:
        print_json({"run": run.id, "checkpoints": [dataclasses.asdict(checkpoint) for checkpoint in summaries]})
    elif not summaries:
        print(f"{run.id} has no checkpoints yet")
    else:
        _print_table(summaries)
    if verify and any(checkpoint.problems for checkpoint in summaries):
        raise typer.Exit(EXIT_FAILED)


def _print_table(summaries: "list[CheckpointSummary]") -> None:
    from ropewalk.cluster.text import format_bytes
    from ropewalk.jobs.runs.show.tables import console, duration, table

    rows, now = table(">STEP", ">SIZE", ">RANKS", "MESH", ">AGE", "KEPT", "STATE"), time.time()
    for each in summaries:
        mesh = ", ".join(f"{axis} {size}" for axis, size in (each.mesh or {}).items())
        reasons = ["best"] * each.best + [f"pinned by {name}" for name in each.pinned_by]
        state = "; ".join(each.problems) or ("verified" if each.verified else "complete")
        rows.add_row(
            str(each.step),
            "" if each.bytes is None else format_bytes(each.bytes),
            "" if each.world_size is None else str(each.world_size),
            mesh,
            "" if each.time is None else duration(now - each.time),
            ", ".join(reasons),
            state,
        )
    console().print(rows)
