"""The command `shell`."""

from typing import Annotated

import typer

from ropewalk.jobs.cli.complete import RunRef


def shell(
    context: typer.Context,
    run_ref: RunRef,
    node: Annotated[int, typer.Option("--node", min=0, metavar="N", help="the node, from 0")] = 0,
) -> None:
    """Open a shell on a node of a running run; with `-- COMMAND` run a command there: `shell RUN -- nvidia-smi`."""
    import os
    import sys

    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.shell import shell_command
    from ropewalk.jobs.runs.show.status import find_run

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    command = shell_command(freshen(find_run(run_ref)), node, context.obj or [], terminal=terminal)
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606 - so that the terminal and its signals are the program's own
