"""The class of all commands: with the option `--on`, which sends them to the cluster where a run is."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ropewalk.jobs.cli import complete

if TYPE_CHECKING:
    from ropewalk.cluster.backends.base import Profile

SUBMITTING = frozenset({"run", "submit"})
RESUMING = frozenset({"resume", "repro"})
TAKING_FILES = frozenset({"run", "submit", "fetch"})
READING_INPUT = frozenset({"chat", "cluster-step"})
AT_A_TERMINAL = frozenset({"shell", "top", "chat"})  # commands that get a terminal there, unless one of these options is given
WITHOUT_TERMINAL = ("with_input", "once", "as_json")
Elsewhere = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="CLUSTER",
        help="cluster whose login node has the runs; known for runs that were submitted from here",
        autocompletion=complete.clusters,
    ),
]
RUN_PARAMETERS = ("run_ref", "run", "resumed", "model", "first", "current")  # of commands; each holds a run, or something else
HERE_FIRST = frozenset({"doctor", "dev", "move"})  # commands that take a cluster with a `host` themselves
ARGUMENTS = "ropewalk.arguments"  # key of a context's `meta`


class ClusterCommand(TyperCommand):
    """A command that runs on a login node if its cluster has a `host`."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Keep the arguments as they were typed."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command here, or on the login node of its cluster."""
        cluster = _cluster_of(ctx)
        if cluster is None:
            return super().invoke(ctx)
        raise typer.Exit(_run_there(ctx, cluster))


def with_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the option `--on`, unless it has one: for runs that are on a cluster with a `host`."""
    signature = inspect.signature(command)
    if "on" in signature.parameters:
        return command

    @wraps(command)
    def with_option(*args: Any, on: str | None = None, **values: Any) -> Any:
        if on is not None:
            from ropewalk.cluster.backends.profiles import load_backend

            load_backend(on)  # raises ConfigError for an unknown cluster, and for a wrong key of its profile
        return command(*args, **values)

    option = inspect.Parameter("on", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Elsewhere)
    with_option.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    with_option.__annotations__ = {**command.__annotations__, "on": Elsewhere}
    return with_option


def _cluster_of(ctx: Any) -> "Profile | None":
    """Return the cluster of a command if it is reached through ssh."""
    values = ctx.params
    if values.get("help_") or values.get("every_key") or ctx.info_name in HERE_FIRST:
        return None
    on = values.get("on")
    if on in (None, "local") and not (on := _known_cluster(values)):
        return None
    return reached_through_ssh(on)


def reached_through_ssh(on: str) -> "Profile | None":
    """Return the profile of a cluster if it has a `host`. Raises ConfigError if the profile file is not trusted."""
    from ropewalk.cluster.backends.profiles import load_profile, read_profiles

    return load_profile(on) if (read_profiles().get(on) or {}).get("host") else None


def _known_cluster(values: dict[str, Any]) -> str | None:
    """Return the cluster of the first run of a command that was submitted through ssh and is not on this machine."""
    from ropewalk.jobs.cli.known_runs import cluster_of

    for ref in [*(values.get(name) for name in RUN_PARAMETERS), *(values.get("run_refs") or ())]:
        if ref and (cluster := cluster_of(ref)):
            return cluster
    return None


def _run_there(ctx: Any, cluster: "Profile") -> int:
    from ropewalk.jobs.cli.known_runs import submission_id
    from ropewalk.jobs.cli.ssh.client import run_there

    name, program = str(ctx.info_name), list(ctx.obj or [])
    arguments, values = [name, *ctx.meta[ARGUMENTS]], ctx.params
    baggage = _baggage(ctx, values) if name in TAKING_FILES or (name in RESUMING and values.get("code")) else None
    if (file := values.get("config")) is not None:
        arguments = [_relative(argument, str(file)) for argument in arguments]
    arguments += ["--", *program] if program else []
    if name == "secret":
        from ropewalk.jobs.cli.secret import value_of

        value = value_of(values["action"], values["names"] or [])  # read here, where a prompt can hide it
        return run_there(cluster, arguments, reads_input=value is not None, given_input=value)
    if name not in SUBMITTING | RESUMING:
        if baggage is None:
            _check_outputs(name, [value for value in values.values() if isinstance(value, Path)], cluster)
        wants_terminal = name in AT_A_TERMINAL and not any(values.get(option) for option in WITHOUT_TERMINAL)
        terminal = wants_terminal and sys.stdin.isatty() and sys.stdout.isatty()
        reads_input = name in READING_INPUT or bool(values.get("with_input"))
        return run_there(cluster, arguments, baggage=baggage, reads_input=reads_input, terminal=terminal)
    with submission_id(cluster.name, arguments) as submission:
        return run_there(cluster, arguments, baggage=baggage, submission=submission)


def _check_outputs(command: str, paths: list[Path], cluster: "Profile") -> None:
    """Check paths of files that a command writes. Raises ConfigError for one that would not arrive here, or replace files."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.run.files import require_empty

    host = cluster.options["host"]
    for path in paths:
        if path.is_absolute():
            sys.stderr.write(f"{path}: a path on {host}; what is written to a relative path arrives here\n")
        elif ".." in path.parts:
            raise ConfigError(f"{path}: files from {host} arrive below the current directory; name a path there")
        elif command == "export":
            require_empty(path)


def _baggage(ctx: Any, values: dict[str, Any]) -> Any:
    from ropewalk.jobs.cli.arguments import job_of, with_program
    from ropewalk.jobs.cli.ssh.request import baggage_of, code_baggage

    if values.get("resumed") or "job" not in values:
        return code_baggage()
    job, overrides = job_of(values["job"], values["overrides"], values["config"], str(ctx.info_name))
    if job is None:
        return None
    overrides = with_program(ctx, job, overrides, values["config"])
    return baggage_of(job, values["config"], overrides, values.get("each") or [])


def _relative(argument: str, file: str) -> str:
    """Return an argument with the job file's path relative to the current directory, as it is found on the login node."""
    if file.startswith("/") and argument.endswith(file):
        import os.path

        return argument.removesuffix(file) + os.path.relpath(file)
    return argument
