"""Arguments and options shared by several commands, with their help and shell completion."""

from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete

RunRef = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="a run: its id, a unique prefix of it, its directory, or latest", autocompletion=complete.runs
    ),
]
JobName = Annotated[
    str | None, typer.Argument(metavar="JOB", help="preprocess, pretrain, evaluate, ...", autocompletion=complete.jobs)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="overrides, such as optim.lr=1e-3", autocompletion=complete.keys),
]
ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", metavar="FILE.yaml", help="the job file")]
Cluster = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="CLUSTER",
        help="cluster from the profile file, or local, slurm, k8s",
        autocompletion=complete.clusters,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the script or manifest without submitting")]
HelpFlag = Annotated[bool, typer.Option("--help", help="show this page; after JOB: all keys of the job")]
