"""Commands about a machine or a cluster: `doctor`, `trust`, `lab`, `quickstart`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli.complete import AsJson, Cluster
from ropewalk.jobs.cli.json_output import print_json

LABS = "ropewalk.labs"  # entry points of test clusters


def doctor(on: Cluster = "local", as_json: AsJson = False) -> None:
    """Check this machine and a cluster for missing parts, with a remedy for each."""
    from ropewalk.jobs.cli.ssh.command import reached_through_ssh
    from ropewalk.jobs.runs.show.tables import checks_table, console

    if (cluster := reached_through_ssh(on)) is not None:
        from ropewalk.jobs.cli.ssh.doctor import checks_there

        results = checks_there(cluster)
    else:
        from ropewalk.jobs.inference.engines.checks import engine_checks
        from ropewalk.jobs.runs.show.doctor import checks

        results = [*checks(on), *engine_checks()]
    passed = all(check.ok or check.optional for check in results)
    if as_json:
        print_json({"ok": passed, "checks": list(map(asdict, results))})
    else:
        console().print(checks_table(results))
    if not passed:
        raise typer.Exit(1)


def nodes(on: Cluster = "local", as_json: AsJson = False) -> None:
    """List machines of a cluster that failed under runs of yours, and those that new runs avoid."""
    from ropewalk.jobs.runs.show.nodes import failed_nodes, nodes_table
    from ropewalk.jobs.runs.show.tables import console

    rows = failed_nodes(on)
    if as_json:
        print_json({"cluster": on, "nodes": rows})
    elif rows:
        console().print(nodes_table(rows))
    else:
        print(f"no machine of {on} failed under runs of yours in the last days")


def trust(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="profile file of a directory")] = Path("clusters.yaml"),
    as_json: AsJson = False,
) -> None:
    """Trust the present content of a profile file that would start programs, such as kubeconfig log-ins and `setup`.

    Ropewalk uses such a file of the current directory only if its content is trusted. Files named by $ROPEWALK_CLUSTERS and
    ~/.config/ropewalk/clusters.yaml need no trust.
    """
    from ropewalk.cluster.backends.profiles import read_profile_file
    from ropewalk.cluster.backends.trust import trust, trusted_file

    programs = trust(file, read_profile_file(file))
    if as_json:
        print_json({"file": str(file), "trusted": bool(programs), "programs": programs})
        return
    print("\n".join([*programs, f"{file}: trusted, in {trusted_file()}"]) if programs else f"{file}: starts no program")


def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="directory to write")] = Path("quickstart"),
    steps: Annotated[int, typer.Option(min=20, help="training steps")] = 300,
) -> None:
    """Preprocess, train and evaluate a small model on this machine in a few minutes, on local text."""
    from ropewalk.jobs.cli.quickstart import quickstart as tour
    from ropewalk.jobs.runs.show.tables import console

    tour(directory, console(), steps)


def lab(
    context: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="NAME COMMAND", help="a test cluster and its command")] = None,
) -> None:
    """Start a real test cluster on this machine: `ropewalk lab slurm up`."""
    if arguments and arguments[0] not in {"-h", "--help"}:
        return _load_lab(arguments[0])(arguments[1:])
    typer.echo(context.get_help())
    return typer.echo(f"Test clusters: {_installed_labs()}; `ropewalk lab NAME --help` lists its commands.")


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
