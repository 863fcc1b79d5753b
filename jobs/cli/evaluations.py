"""The command `compare`: two evaluated models, item by item."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import AsJson

_SIDE = "an evaluate run, an evaluated model (run or directory), or a group: its name, or runs separated by commas"


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=complete.runs)],
    second: Annotated[str, typer.Argument(metavar="B", help="the model to compare A with", autocompletion=complete.runs)],
    seeds: Annotated[bool, typer.Option("--seeds", help="A and B are groups of runs; pair them by seed")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="HTML page to write; unset: comparison-B.html beside A's report"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluated models item by item: difference, confidence interval, smallest detectable difference."""
    from ropewalk.jobs.evaluation.evaluate.comparison_report import row, write_comparison
    from ropewalk.jobs.runs.models.comparison import compare as compare_sides
    from ropewalk.jobs.runs.models.evaluations import FOLDER, find_evaluations
    from ropewalk.jobs.runs.show.tables import console, table

    sides = find_evaluations(first), find_evaluations(second)
    comparison = compare_sides(*sides, names=(first, second), seeds=seeds)
    side_a, side_b = comparison.pairs[0]
    page = write_comparison(comparison, report or side_a.run.path / FOLDER / f"comparison-{side_b.run.id}.html")
    if as_json:
        sys.stdout.write(f"{json.dumps({**comparison.plain(), 'report': str(page)}, default=str)}\n")
        return
    metrics_table = table("TASK", "METRIC", ">A", ">B", ">A - B", ">95% INTERVAL", ">P", ">SMALLEST", ">N", "BETTER")
    for metric in comparison.metrics:
        metrics_table.add_row(metric.task, metric.metric, *row(comparison, metric))
    console().print(metrics_table)
    for metric in comparison.metrics:
        console().print(comparison.words(metric), markup=False, soft_wrap=True)
    if len(comparison.metrics) > 1:
        console().print(f"By chance, one in twenty of {len(comparison.metrics)} comparisons shows a difference.", style="dim")
    console().print(f"report with examples: {page}", markup=False, soft_wrap=True)
