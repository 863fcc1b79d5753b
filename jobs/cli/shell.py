"""The command `shell`."""

from typing import Annotated

import typer

from ropewalk.jobs.cli.complete import RunRef


def shell(
    context: typer.Context,
    run_ref: RunRef,
    node: Annotated[int, typer.Option("--node", min=0, metavar="N", help="the node, from 0")] = 0,
    with_input: Annotated[bool, typer.Option("--stdin", "-i", help="pass on standard input to the command")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait until the run runs")] = False,
) -> None:
    """Open a shell on a node of a running run; with `-- COMMAND` run a command there: `shell RUN -- nvidia-smi`."""
    import os
    import sys

    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.shell import await_node, shell_command
    from ropewalk.jobs.runs.show.status import find_run

    run = find_run(run_ref)
    if wait:
        await_node(run, node, lambda reason: sys.stderr.write(f"{run.id} waits: {reason}\n"))
    terminal = not with_input and sys.stdin.isatty() and sys.stdout.isatty()
    command = shell_command(freshen(run), node, context.obj or [], terminal=terminal, with_input=with_input)
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606 - so that the terminal and its signals are the program's own
