"""Commands about a machine or a cluster, not about one run: doctor, lab, quickstart."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli.arguments import Cluster

LABS = "ropewalk.labs"  # entry points of test clusters


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
    if arguments and arguments[0] != "--help":
        return _load_lab(arguments[0])(arguments[1:])
    typer.echo(context.get_help())
    return typer.echo(f"Test clusters: {_installed_labs()}; `ropewalk lab NAME --help` shows the commands of one.")


def _load_lab(name: str) -> Callable[[Sequence[str]], None]:
    """Return the command of a test cluster, which takes the arguments after its name. Raises ConfigError for an unknown name."""
    from importlib.metadata import entry_points

    for point in entry_points(group=LABS, name=name):
        command: Callable[[Sequence[str]], None] = point.load()
        return command
    from ropewalk.cluster.errors import ConfigError

    raise ConfigError(f"unknown test cluster {name!r}; installed: {_installed_labs()}")


def _installed_labs() -> str:
    from importlib.metadata import entry_points

    return ", ".join(sorted(point.name for point in entry_points(group=LABS))) or "none"
