"""The command `help`."""

from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AllKeys


def help_(
    context: typer.Context,
    *,
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND | [JOB] KEY]", help="a command, a job, a key, or both", autocompletion=complete.topics),
    ] = None,
    every_key: AllKeys = False,
) -> None:
    """Explain a command, a job or a key: `help ps`, `help pretrain`, `help optim.lr`, `help finetune optim.lr`."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.cli.job_help import has_key, print_job_help, print_key_help
    from ropewalk.jobs.registry import JOBS

    group = context.parent
    assert group is not None
    match topics or []:
        case []:
            typer.echo(group.get_help())
        case [name] if (command := group.command.commands.get(name)) is not None:  # type: ignore[attr-defined]
            typer.echo(command.get_help(typer.Context(command, parent=group, info_name=name)))
            if has_key(name):
                print_key_help(name, JOBS)
        case [name] if name in JOBS or ":" in name:
            print_job_help("run", name, every_key)
        case [name]:
            print_key_help(name, JOBS, group.command.commands)  # type: ignore[attr-defined]
        case [job, name]:
            print_key_help(name, [job])
        case more:
            raise ConfigError(f"{' '.join(more)!r}: explain one command, job or key at a time, such as `ropewalk help optim.lr`")
