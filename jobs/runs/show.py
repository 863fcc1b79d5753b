"""What `show` shows of a run, whatever its job: a page, the same as plain values, or pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.run.directory import RunDir
from jobs.runs.status import details
from jobs.sweep.results import is_sweep, read_sweep, with_run_states

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(run: RunDir) -> dict[str, Any]:
    """What `show --json` prints."""
    return {**details(run), **(with_run_states(read_sweep(run)).plain() if is_sweep(run) else {})}


def page(run: RunDir) -> "RenderableType":
    """What `show` prints."""
    if is_sweep(run):
        from jobs.sweep.tables import sweep_page

        return sweep_page(details(run), with_run_states(read_sweep(run)))
    from jobs.runs.tables import run_page

    return run_page(details(run))


def ending(run: RunDir, result: Mapping[str, Any]) -> "RenderableType":
    """What stands at the end of a followed run that succeeded. `result` is its last object."""
    if is_sweep(run):
        from jobs.sweep.tables import sweep_ending

        return sweep_ending(read_sweep(run))
    from jobs.runs.tables import values_table

    return values_table(result, "succeeded")


def pictures(run: RunDir, file: Path | None) -> list[Path]:
    """What `show --plot` writes, by default into the run's directory. Raises DataError if there is nothing to draw yet."""
    if is_sweep(run):
        from jobs.sweep.html_report import write_report

        return write_report(run, file or run.path / "sweep.png")
    from jobs.runs.plots import plot_run

    return [plot_run(run, file or run.path / "curves.png")]
