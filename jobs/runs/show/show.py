"""Output of `show` and of the end of a followed run, from the view of the run's job."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.moves import moved_to
from ropewalk.cluster.run.names import WANDB_OFFLINE
from ropewalk.cluster.run.origin import login_node
from ropewalk.cluster.run.siblings import Sibling, sibling_elsewhere
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import details, wandb_address
from ropewalk.jobs.runs.show.view import RunView, short_path, user_path, view_of

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(run: RunDir) -> dict[str, Any]:
    """Return the content of `show --json`."""
    return {**details(run), **view_of(run).plain()}


def page(run: RunDir) -> "RenderableType":
    """Render the output of `show`."""
    from rich.console import Group

    view, values = view_of(run), details(run)
    state = RunState(values["state"])
    return Group(view.page(values), *([next_steps(view, state)] if state.final else []))


def ending(run: RunDir, result: Mapping[str, Any]) -> "RenderableType":
    """Render the end of a followed run that succeeded. `result`: the last line of `run --json`."""
    from rich.console import Group

    view = view_of(run)
    return Group(view.ending(result), next_steps(view, RunState.SUCCEEDED))


def next_steps(view: RunView, state: RunState) -> "RenderableType":
    """Render the files that an ended run has made, and the commands that follow."""
    from ropewalk.jobs.runs.show.fitted_tables import NextSteps

    commands = _commands_after(view, state)
    if (view.run.path / WANDB_OFFLINE).exists() and wandb_address(view.run) is None:
        commands.append(
            (f"ropewalk sync {view.run.id}", f"send its metrics to W&B; until then in {short_path(user_path(view.run.wandb))}")
        )
    if (node := login_node()) is not None:
        on = f" --on {node.cluster}"
        commands = [(command if " --on " in command else f"{command}{on}", meaning) for command, meaning in commands]
    return NextSteps(_outputs(view), commands)


def _outputs(view: RunView) -> list[str]:
    return [short_path(user_path(path)) for path in view.outputs() if "://" in path or Path(path).exists()]


def _commands_after(view: RunView, state: RunState) -> list[tuple[str, str]]:
    if state is RunState.SUCCEEDED:
        return view.next_commands()
    cluster = moved_to(view.run)
    if successor := Sibling(cluster, view.run.id) if cluster else sibling_elsewhere(view.run):
        return [(f"ropewalk why {successor.run} --on {successor.cluster}", "the run that goes on in its place")]
    run = view.run.id
    why, logs = (
        (f"ropewalk why {run}", "cause, evidence and what to do"),
        (f"ropewalk logs {run}", "output of all nodes and ranks"),
    )
    if state is RunState.REFUSED:
        return [why, (f"ropewalk show {run}", "attempts, results and events")]
    if view.run.parent is not None:  # it resumes its runs itself
        return [why, logs]
    resume = (f"ropewalk resume {run}", f"{view.resume_words()}; KEY=VALUE changes keys")
    return [resume, logs] if state is RunState.CANCELLED else [why, logs, resume]


def pictures(run: RunDir, file: Path | None) -> list[Path]:
    """Write the plots of `show --plot`, by default into the run directory, and return their paths. Raises DataError."""
    view = view_of(run)
    try:
        return view.pictures(file)
    except DataError as error:
        if not (outputs := _outputs(view)):
            raise
        raise DataError(f"{error}; it made {', '.join(outputs)}") from None
