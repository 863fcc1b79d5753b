"""`ropewalk lab NAME`: find a test cluster by name."""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

import typer

from cluster.errors import ConfigError

GROUP = "ropewalk.labs"


def run_lab(words: Sequence[str], help_text: str) -> None:
    """Hand the words after its name to a test cluster's own command; without a name print `help_text`."""
    if words and words[0] != "--help":
        return load_lab(words[0])(words[1:])
    return typer.echo(f"{help_text}\n\nTest clusters: {_installed()}; `ropewalk lab NAME --help` says more.")


def load_lab(name: str) -> Callable[[Sequence[str]], None]:
    """The command of a test cluster, found through the entry-point group `ropewalk.labs`; it takes the words that follow."""
    for point in entry_points(group=GROUP, name=name):
        command: Callable[[Sequence[str]], None] = point.load()
        return command
    raise ConfigError(f"no test cluster {name!r}; there are: {_installed()}")


def _installed() -> str:
    return ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
