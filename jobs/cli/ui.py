"""The command `ui`."""

import socket
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli.known_runs import known_clusters

if TYPE_CHECKING:
    from ropewalk.cluster.local_access import LocalAccess


def ui(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port of the page; 0: any free port")] = 0,
) -> None:
    """Show runs in a browser: list, curves, configuration, samples, hangs, goodput, cost, and several runs together."""
    import asyncio

    from ropewalk.cluster.errors import ConfigError

    try:
        from ropewalk.jobs.runs.ui.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'ropewalk[ui]'") from error
    if clusters := known_clusters():
        print(f"Runs on {' and '.join(clusters)} are not shown: start `ropewalk ui` on the login node there.")
    asyncio.run(serve(port, print_link))


def print_link(access: "LocalAccess") -> None:
    """Print a new link, and the way to it from another machine."""
    number = access.address.rpartition(":")[2]
    print(access.link())
    tunnel = f"ssh -NL {number}:localhost:{number} {socket.gethostname()}"
    print(f"Open the link in a browser of this machine; elsewhere first run: {tunnel}")
    ends = "Enter prints a new one, Ctrl-C ends" if sys.stdin.isatty() else "Ctrl-C or SIGTERM ends"
    print(f"The link works once; {ends}.", flush=True)
