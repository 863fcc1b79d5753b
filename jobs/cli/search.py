"""The command `sweep`: try a search on recorded learning curves, or use it for a loop of one's own."""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.jobs.orchestration.sweep.config import SweepConfig


class Action(StrEnum):
    """Actions of `sweep`."""

    SIMULATE = "simulate"
    ASK = "ask"
    TELL = "tell"


def sweep(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    action: Annotated[Action, typer.Argument(help="what to do")],
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="job file of a sweep")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="changed keys")] = None,
    data: Annotated[str, typer.Option("--data", help="simulate: data set of the recorded curves: code or prose")] = "code",
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="simulate: Parquet file; unset: the one shipped")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=2, max=1000, metavar="N", help="simulate: number of sweeps")] = 20,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="simulate: write a picture of regret over cost (PNG)")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="ask, tell: file of the search; unset: FILE.trials.jsonl")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a sweep in seconds on recorded curves, or ask its search for parameters in a loop of your own.

    `simulate` holds the search against random draws, with the sweep's scheduler. The curves are of small models that `pretrain`
    trained; the keys of the space must be among those that were varied, and values are rounded to recorded ones.

    `ask` prints the next trial as JSON, `{"trial": 0, "parameters": {...}}`, or `null` after the last. `tell` reads results, an
    object a line: trial, value, step, and state: running, complete (the default), stopped or failed.
    """
    from ropewalk.jobs.orchestration.sweep.config import SweepConfig
    from ropewalk.jobs.runs.submit.submit import configure

    config = configure("sweep", file, overrides or [])
    assert isinstance(config, SweepConfig)
    if config.warm_start:
        config = config.resolved()
    if action is Action.SIMULATE:
        _simulate(config, data, table, seeds, plot, as_json=as_json)
    else:
        _ask_or_tell(config, action, state or file.with_suffix(".trials.jsonl"))


def _ask_or_tell(config: "SweepConfig", action: Action, state: Path) -> None:
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.orchestration.sweep.search.ask_tell import AskTell

    search = AskTell(config.search_plan, config.num_trials, state)
    if action is Action.ASK:
        print_json(search.ask())
        return
    for line in filter(str.strip, sys.stdin):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"tell: {line.strip()[:80]!r} is not JSON: {error}") from None
        print_json(search.tell(values).model_dump())


def _simulate(config: "SweepConfig", data: str, table: Path | None, seeds: int, plot: Path | None, *, as_json: bool) -> None:
    from ropewalk.jobs.orchestration.sweep.simulate.against_random import against_random
    from ropewalk.jobs.orchestration.sweep.simulate.curve_table import SHIPPED, CurveTable

    report: Callable[[str], None] = _progress if sys.stderr.isatty() else lambda _line: None
    result = against_random(config, CurveTable.read(data, table or SHIPPED), range(seeds), report)
    if plot is not None:
        from ropewalk.jobs.orchestration.sweep.simulate.picture import write_picture

        write_picture(result, plot)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _progress(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}")


def _print(result: dict[str, Any]) -> None:
    from ropewalk.jobs.orchestration.sweep.report.results import format_metric
    from ropewalk.jobs.runs.show.tables import console, table

    budgets = list(result["searches"][0]["by_budget"])
    title = f"regret on {result['data']}, {result['points']} recorded configurations, scheduler={result['scheduler']}"
    rows = table("SEARCH", ">MEAN", ">± SE", *(f">{budget} TRIALS" for budget in budgets), ">TO BEST 1%", ">N", title=title)
    for search in result["searches"]:
        cost = search["trials_to_best_1_percent"]
        cells = [format_metric(search[key]) for key in ("regret", "standard_error")]
        by_budget = [format_metric(search["by_budget"][budget]) for budget in budgets]
        rows.add_row(search["search"], *cells, *by_budget, "never" if cost is None else f"{cost:.1f}", str(search["n"]))
    console().print(rows)
    low, high = (format_metric(end) for end in result["interval"])
    verdict = f"{result['better']} is better" if result["better"] else "no significant difference"
    print(f"{verdict}: paired difference {format_metric(result['difference'])}, 95% interval {low} to {high}")
