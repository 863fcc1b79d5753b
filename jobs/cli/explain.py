"""The command `help`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AllKeys
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.jobs.cli.job_keys import Key


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
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on stdout; a command's has its schema")] = False,
) -> None:
    """Explain a command, a job, a key such as optim.lr, or a metric such as train/loss."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.cli.job_help import has_key, print_job_help, print_key_help
    from ropewalk.jobs.registry import JOBS
    from ropewalk.jobs.results.metric_names import find_metric

    group = context.parent
    assert group is not None
    if len(topics or []) > 2:
        line = " ".join(topics or [])
        raise ConfigError(f"{line!r}: explain one command, job or key at a time, such as `ropewalk help optim.lr`")
    if as_json:
        return print_json(_plain(group, topics or []))
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
    return None


def _plain(group: Any, topics: list[str]) -> dict[str, Any]:
    """Return what `help --json` prints about these topics. Raises ConfigError."""
    from ropewalk.jobs.cli.job_help import find_keys
    from ropewalk.jobs.cli.job_keys import keys_of
    from ropewalk.jobs.registry import JOBS, config_of, find_job
    from ropewalk.jobs.results.metric_names import find_metric

    commands: dict[str, Any] = group.command.commands
    match topics:
        case []:
            summaries = [{"name": name, "summary": command.get_short_help_str(200)} for name, command in commands.items()]
            jobs = [{"name": name, "summary": spec.summary} for name, spec in JOBS.items()]
            return {"kind": "overview", "commands": summaries, "jobs": jobs}
        case [name] if name in commands:
            return _plain_command(group, name, commands[name])
        case [name] if name in JOBS or ":" in name:
            spec = find_job(name)
            keys = [_plain_key(key, [name]) for key in keys_of(config_of(spec))]
            return {"kind": "job", "name": name, "summary": spec.summary, "keys": keys}
        case [name] if (metric := find_metric(name)) is not None:
            return {"kind": "metric", "name": name, "summary": metric.meaning, "unit": metric.unit, "jobs": metric.jobs}
    variants = find_keys(topics[-1], topics[:-1] or JOBS, commands)
    keys = [_plain_key(key, jobs) for key, jobs in variants]
    return {"kind": "key", "name": topics[-1], "summary": variants[0][0].meaning, "keys": keys}


def _plain_command(group: Any, name: str, command: Any) -> dict[str, Any]:
    from ropewalk.jobs.cli.answers.schema import ANSWERS, LINES, schema_of

    context = typer.Context(command, parent=group, info_name=name)
    records = [record for item in command.params if (record := item.get_help_record(context)) is not None]
    return {
        "kind": "command",
        "name": name,
        "summary": command.get_short_help_str(200),
        "usage": command.get_usage(context).removeprefix("Usage: "),
        "options": [{"name": record[0], "meaning": record[1]} for record in records],
        "json_schema": schema_of(name) if name in ANSWERS else None,
        "json_lines": name in LINES,
    }


def _plain_key(key: "Key", jobs: list[str]) -> dict[str, Any]:
    values = {"name": key.name, "meaning": key.meaning, "type": key.type, "default": key.default}
    return {**values, "values": list(key.values), "jobs": list(jobs)}
