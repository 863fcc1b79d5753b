"""`ropewalk lab NAME`: find a test cluster by its name in the entry-point group `ropewalk.labs`."""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

import typer

from ropewalk.cluster.errors import ConfigError

GROUP = "ropewalk.labs"


def run_lab(arguments: Sequence[str], lab_help: Callable[[], str]) -> None:
    """Hand the arguments after its name to a test cluster's own command; without a name print `lab_help` and the names."""
    if arguments and arguments[0] != "--help":
        return load_lab(arguments[0])(arguments[1:])
    typer.echo(lab_help())
    return typer.echo(f"Test clusters: {_installed()}; `ropewalk lab NAME --help` shows the commands of one.")


def load_lab(name: str) -> Callable[[Sequence[str]], None]:
    """The command of a test cluster, which takes the arguments after its name. Raises ConfigError for an unknown name."""
    for point in entry_points(group=GROUP, name=name):
        command: Callable[[Sequence[str]], None] = point.load()
        return command
    raise ConfigError(f"unknown test cluster {name!r}; installed: {_installed()}")


def _installed() -> str:
    return ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
