"""Commands that take something out of runs: export (a model), sync (W&B files)."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import complete
from jobs.cli.arguments import RunRef


def export(
    run_ref: RunRef,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the directory to write")],
    step: Annotated[int | None, typer.Option("--step", help="the checkpoint of this step; unset: the newest")] = None,
) -> None:
    """Write a checkpoint as a Hugging Face model directory, with its model card and bill of materials."""
    from jobs.cards.export import export_with_cards
    from jobs.runs.remote import export_elsewhere
    from jobs.runs.status import find_run

    found = find_run(run_ref)
    print(directory if export_elsewhere(found, directory, step) else export_with_cards(found, directory, step))


def sync(
    run_ref: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="only this run; unset: all", autocompletion=complete.runs)
    ] = None,
) -> None:
    """Upload W&B files that were written offline."""
    from jobs.runs.status import all_runs, find_run
    from jobs.tracking.wandb_sync import sync_run

    for found in [find_run(run_ref)] if run_ref else all_runs():
        for path in sync_run(found):
            print(f"{found.id}: {path.name}")
