"""Commands about a machine or a cluster, not about one run: doctor, lab, quickstart."""

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli.arguments import Cluster


def doctor(on: Cluster = "local") -> None:
    """Check this machine and a cluster: what is there, what is missing, what to do."""
    from ropewalk.jobs.inference.engines.checks import engine_checks
    from ropewalk.jobs.runs.show.doctor import checks
    from ropewalk.jobs.runs.show.tables import checks_table, console

    found = [*checks(on), *engine_checks()]
    console().print(checks_table(found))
    if not all(check.ok for check in found):
        raise typer.Exit(1)


def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="the directory to write")] = Path("quickstart"),
    steps: Annotated[int, typer.Option(min=20, help="training steps")] = 300,
) -> None:
    """Preprocess, train and evaluate on this machine in a few minutes, on text that is already here."""
    from ropewalk.jobs.cli.quickstart import quickstart as tour
    from ropewalk.jobs.runs.show.tables import console

    tour(directory, console(), steps)


def lab(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="NAME COMMAND", help="a test cluster, and what to do with it")
    ] = None,
) -> None:
    """Start a real test cluster on this machine: `ropewalk lab slurm up`."""
    from ropewalk.jobs.cli.labs import run_lab

    run_lab(arguments or [], context.get_help)
