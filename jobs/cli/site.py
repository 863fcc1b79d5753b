"""Commands of `ropewalk` that are about a machine or a cluster, not about one run."""

from pathlib import Path
from typing import Annotated

import typer

Cluster = Annotated[str, typer.Option("--on", metavar="CLUSTER", help="a cluster of the profile file, local, slurm or k8s")]


def doctor(on: Cluster = "local") -> None:
    """Check this machine and a cluster."""
    from jobs.runs.doctor import checks
    from jobs.runs.tables import checks_table, console

    found = checks(on)
    console().print(checks_table(found))
    if not all(check.ok for check in found):
        raise typer.Exit(1)


def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="where all of it goes")] = Path("quickstart"),
    steps: Annotated[int, typer.Option(min=20, help="training steps")] = 300,
) -> None:
    """See all of it on this machine in a few minutes, on text that is already here."""
    from jobs.cli.quickstart import quickstart as tour
    from jobs.runs.tables import console

    tour(directory, console(), steps)


def lab(context: typer.Context, words: Annotated[list[str] | None, typer.Argument(metavar="slurm up|down|...")] = None) -> None:
    """Bring up a real test cluster on this machine: `ropewalk lab slurm up`."""
    from jobs.cli.labs import run_lab

    run_lab(words or [], context.get_help())
