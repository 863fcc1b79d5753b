"""Commands about what was measured: compare (two models, item by item)."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import AsJson

_SIDE = "a run of evaluate, a model (run or directory) that was evaluated, or a group: a name, or runs with commas between them"


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=complete.runs)],
    second: Annotated[str, typer.Argument(metavar="B", help="what A is compared with", autocompletion=complete.runs)],
    seeds: Annotated[bool, typer.Option("--seeds", help="A and B are groups of runs, paired by their seeds")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="the page to write; unset: comparison-B.html beside A's report"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluated models item by item: the difference, its interval, and the smallest one that would show."""
    from ropewalk.jobs.evaluation.evaluate.comparison_report import row, write_comparison
    from ropewalk.jobs.runs.models.comparison import compare as compare_sides
    from ropewalk.jobs.runs.models.evaluations import FOLDER, find_evaluations
    from ropewalk.jobs.runs.show.tables import console, table

    sides = find_evaluations(first), find_evaluations(second)
    found = compare_sides(*sides, names=(first, second), seeds=seeds)
    one, two = found.pairs[0]
    written = write_comparison(found, report or one.run.path / FOLDER / f"comparison-{two.run.id}.html")
    if as_json:
        sys.stdout.write(f"{json.dumps({**found.plain(), 'report': str(written)}, default=str)}\n")
        return
    made = table("TASK", "METRIC", ">A", ">B", ">A - B", ">95% INTERVAL", ">P", ">SMALLEST", ">N", "BETTER")
    for metric in found.metrics:
        made.add_row(metric.task, metric.metric, *row(found, metric))
    console().print(made)
    for metric in found.metrics:
        console().print(found.words(metric), markup=False, soft_wrap=True)
    if len(found.metrics) > 1:
        console().print(f"Of {len(found.metrics)} comparisons one in twenty shows a difference by chance.", style="dim")
    console().print(f"examples: {written}", markup=False, soft_wrap=True)
