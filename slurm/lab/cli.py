"""`ropewalk lab slurm`: bring the test cluster up and down, and break it."""

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
    name="ropewalk lab slurm",
    help="A real Slurm cluster of several nodes on this machine, to try things on and to break.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="the cluster's directory; by default a temporary one")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="such as n2")]


def main(words: Sequence[str]) -> None:
    """Run one of the commands."""
    app(list(words) or ["--help"], prog_name="ropewalk lab slurm", standalone_mode=False)


@app.command()
def up(
    folder: Folder = None,
    nodes: Annotated[int, typer.Option(help="how many nodes")] = 4,
    cpus: Annotated[int, typer.Option(help="CPUs of each node")] = 4,
) -> None:
    """Start the cluster."""
    lab = _lab(folder)
    lab.up(LabSettings(nodes=nodes, cpus=cpus))
    where = "" if folder is None else f" {folder}"
    typer.echo(
        f"a Slurm cluster is up: {', '.join(lab.nodes)}; partitions main, high (preempts main), short (10 minutes, 2 nodes)"
    )
    typer.echo("next:")
    typer.echo(f"  export SLURM_CONF={lab.conf}")
    typer.echo("  ropewalk run pretrain -c job.yaml --on slurm")
    typer.echo(f"  ropewalk lab slurm kill-node {lab.nodes[-1]}{where}    a power cut; start-node brings it back")
    typer.echo(f"  ropewalk lab slurm down{where}")


@app.command()
def down(folder: Folder = None) -> None:
    """End the cluster and remove its directory."""
    lab = _lab(folder)
    if lab.exists:
        lab.down()
        typer.echo(f"{lab.folder} is down and removed")
    else:
        typer.echo(f"no lab in {lab.folder}")


@app.command()
def kill_node(node: Node, folder: Folder = None) -> None:
    """Cut a node's power: everything on it dies at once."""
    _lab(folder).kill_node(node)
    typer.echo(f"{node} is dead; Slurm finds out by itself, or with: scontrol update nodename={node} state=down reason=power")


@app.command()
def start_node(node: Node, folder: Folder = None) -> None:
    """Give a node its power back."""
    lab = _lab(folder)
    lab.start_node(node)
    typer.echo(f"{node} is {lab.states()[node]}")


@app.command()
def status(folder: Folder = None) -> None:
    """Show the nodes and the queue."""
    lab = _lab(folder)
    typer.echo(f"{lab.folder}: {len(lab.nodes)} nodes, export SLURM_CONF={lab.conf}")
    if not lab.alive:
        raise BackendError(f"{lab.folder}: its controller is dead; ropewalk lab slurm down, and up again")
    for name, state in lab.states().items():
        typer.echo(f"{name} {state}")
    typer.echo(lab.command("squeue").rstrip("\n"))


def _lab(folder: Path | None) -> Lab:
    return Lab(folder or Path(tempfile.gettempdir()) / f"slurm-lab-{os.geteuid()}")
