"""The command `cost`."""

from enum import StrEnum
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.known_runs import print_elsewhere


class By(StrEnum):
    """Groups of runs."""

    RUN = "run"
    SWEEP = "sweep"
    PROJECT = "project"
    MONTH = "month"


def cost(
    run_refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="runs; all runs if none is given", autocompletion=complete.runs),
    ] = None,
    by: Annotated[By, typer.Option("--by", help="what a row stands for")] = By.RUN,
    as_json: AsJson = False,
) -> None:
    """Sum up core-hours, GPU-hours and idle ones, energy, CO2 and money of runs. What cannot be read is unknown."""
    from ropewalk.jobs.runs.show.cost import cost_page, cost_table
    from ropewalk.jobs.runs.show.status import all_runs, find_run
    from ropewalk.jobs.runs.show.tables import console

    runs = list(map(find_run, run_refs)) if run_refs else all_runs()
    page = cost_page(runs, by.value)
    if as_json:
        print_json(page)
    else:
        console().print(cost_table(page))
        if not run_refs:
            print_elsewhere("cost")
