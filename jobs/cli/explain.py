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
        typer.Argument(
            metavar="[COMMAND | METRIC | [JOB] KEY]",
            help="a command, a job, a key, both, or a metric",
            autocompletion=complete.topics,
        ),
    ] = None,
    every_key: AllKeys = False,
) -> None:
    """Explain a command, job, key or metric: `help ps`, `help pretrain`, `help finetune optim.lr`, `help train/mfu`."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.cli.job_help import has_key, print_job_help, print_key_help
    from ropewalk.jobs.registry import JOBS
    from ropewalk.jobs.results.metric_names import find_metric

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
        case [name] if (metric := find_metric(name)) is not None:
            typer.echo(f"{name}\n  {metric.meaning}{f' ({metric.unit})' if metric.unit else ''}; reported by {metric.jobs}")
        case [name]:
            print_key_help(name, JOBS, group.command.commands)  # type: ignore[attr-defined]
        case [job, name]:
            print_key_help(name, [job])
        case more:
            raise ConfigError(f"{' '.join(more)!r}: explain one command, job or key at a time, such as `ropewalk help optim.lr`")
