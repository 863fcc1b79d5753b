"""Output of `show` and of the end of a followed run, from the view of the run's job."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import details
from ropewalk.jobs.runs.show.view import view_of

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(run: RunDir) -> dict[str, Any]:
    """Return the content of `show --json`."""
    return {**details(run), **view_of(run).plain()}


def page(run: RunDir) -> "RenderableType":
    """Render the output of `show`."""
    return view_of(run).page(details(run))


def ending(run: RunDir, result: Mapping[str, Any]) -> "RenderableType":
    """Render the end of a followed run that succeeded. `result`: the last line of `run --json`."""
    return view_of(run).ending(result)


def pictures(run: RunDir, file: Path | None) -> list[Path]:
    """Write the plots of `show --plot`, by default into the run directory, and return their paths. Raises DataError."""
    return view_of(run).pictures(file)
