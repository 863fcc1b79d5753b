"""`ropewalk lab slurm`: start and stop a test cluster, and make its nodes fail."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    name="ropewalk lab slurm",
    help="Start a real Slurm cluster with several nodes on this machine, to try things out and to test failures.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="directory of the cluster; default: a temporary directory")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="name of a node, such as n2")]


def main(arguments: Sequence[str]) -> None:
    """Run a command of `ropewalk lab slurm`."""
    app(list(arguments) or ["--help"], prog_name="ropewalk lab slurm", standalone_mode=False)


@app.command()
def up(
    folder: Folder = None,
    nodes: Annotated[int, typer.Option(help="number of nodes")] = 4,
    cpus: Annotated[int, typer.Option(help="CPUs per node")] = 4,
    gpus: Annotated[int, typer.Option(help="GPUs per node that Slurm counts, without devices")] = 0,
) -> None:
    """Start the cluster."""
    lab = _lab(folder)
    lab.up(LabSettings(nodes=nodes, cpus=cpus, gpus=gpus))
    argument = "" if folder is None else f" {folder}"
    typer.echo(
        f"a Slurm cluster is up: {', '.join(lab.nodes)}; partitions main, high (preempts main), short (10 minutes, 2 nodes)"
    )
    typer.echo("next:")
    typer.echo(f"  export SLURM_CONF={lab.conf}")
    typer.echo("  ropewalk run pretrain -c job.yaml --on slurm")
    typer.echo(f"  ropewalk lab slurm kill-node {lab.nodes[-1]}{argument}    power failure; start-node brings it back")
    typer.echo(f"  ropewalk lab slurm down{argument}")


@app.command()
def down(folder: Folder = None) -> None:
    """Stop the cluster and remove its directory."""
    lab = _lab(folder)
    if lab.exists:
        lab.down()
        typer.echo(f"{lab.folder} is down and removed")
    else:
        typer.echo(f"no lab in {lab.folder}")


@app.command()
def kill_node(node: Node, folder: Folder = None) -> None:
    """Simulate a power failure of a node: all its processes die at once."""
    _lab(folder).kill_node(node)
    typer.echo(f"{node} is dead; Slurm notices after a while, or with: scontrol update nodename={node} state=down reason=power")


@app.command()
def start_node(node: Node, folder: Folder = None) -> None:
    """Start a node again after kill-node."""
    lab = _lab(folder)
    lab.start_node(node)
    typer.echo(f"{node} is {lab.states()[node]}")


@app.command()
def status(folder: Folder = None) -> None:
    """Show the nodes and the queue."""
    lab = _lab(folder)
    typer.echo(f"{lab.folder}: {len(lab.nodes)} nodes, export SLURM_CONF={lab.conf}")
    if not lab.alive:
        raise BackendError(f"{lab.folder}: its controller is dead; run `ropewalk lab slurm down`, then up again")
    for name, state in lab.states().items():
        typer.echo(f"{name} {state}")
    typer.echo(lab.command("squeue").rstrip("\n"))


def _lab(folder: Path | None) -> Lab:
    return Lab(folder or Path(tempfile.gettempdir()) / f"slurm-lab-{os.geteuid()}")
