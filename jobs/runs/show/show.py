"""What `show` and the end of a followed run show, as the view of the run's job has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import details
from ropewalk.jobs.runs.show.view import view_of

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(run: RunDir) -> dict[str, Any]:
    """What `show --json` prints."""
    return {**details(run), **view_of(run).plain()}


def page(run: RunDir) -> "RenderableType":
    """What `show` prints."""
    return view_of(run).page(details(run))


def ending(run: RunDir, result: Mapping[str, Any]) -> "RenderableType":
    """What stands at the end of a followed run that succeeded. `result` is the last line of `run --json`."""
    return view_of(run).ending(result)


def pictures(run: RunDir, file: Path | None) -> list[Path]:
    """The files that `show --plot` writes, by default into the run's directory. Raises DataError if nothing can be drawn yet."""
    return view_of(run).pictures(file)
