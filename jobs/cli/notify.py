"""Command `notify`: test the user's receivers of notifications."""

from typing import Annotated, Literal

import typer

from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json


def notify(
    action: Annotated[Literal["test"], typer.Argument(metavar="test", help="send a message to every receiver")],
    as_json: AsJson = False,
) -> None:
    """Test the receivers of notifications about your runs, which are in ~/.config/ropewalk/notify.yaml (mode 600)."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.runs.notify.config import read_targets
    from ropewalk.jobs.runs.notify.send import try_targets
    from ropewalk.jobs.runs.submit.notification import notify_file

    targets = read_targets()
    if not targets:
        raise ConfigError(f"{notify_file()}: no receivers; the guide of the first run has an example")
    results = try_targets(targets)
    if as_json:
        print_json([result._asdict() for result in results])
    else:
        print("\n".join(f"{result.target}: {'accepted' if result.accepted else result.error}" for result in results))
    if not all(result.accepted for result in results):
        raise typer.Exit(1)
