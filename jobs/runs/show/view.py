"""`RunView`, the interface through which a job customizes how its runs are shown, followed, explained and cancelled."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.origin import login_node
from ropewalk.cluster.spec import Engine
from ropewalk.cluster.text import counted
from ropewalk.jobs.registry import view_class

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ropewalk.jobs.runs.show.endpoint import Endpoint


class RunView:
    """Default view of a run. A job overrides methods in a subclass and names it in its JobSpec, such as
    `view="ropewalk.jobs.orchestration.sweep.report.view:SweepView"`. Fast commands import the subclass, so its module must import
    rich, torch and other heavy modules only inside functions.
    """

    serves = False  # the job's runs answer requests
    on_cancel = "saves a checkpoint"  # what a run that is cancelled does before it exits
    shows_output = False  # rank 0's output is shown while the run is followed: it is a program of the user's
    trains = False  # its ranks take the steps of the training loop, so that they can be profiled

    def __init__(self, run: RunDir) -> None:
        self.run = run

    # --- endpoint

    def endpoint(self) -> "Endpoint | None":
        """Return the run's API endpoint, or None if it does not serve now."""
        return None

    # --- children

    def children(self) -> list[RunDir]:
        """Return the runs that this one has started; they are cancelled and copied with it, and may be on other machines."""
        return []

    def child_words(self, child: RunDir) -> str:
        """Return a short name of a child's role in this run, such as `trial 3`."""
        return ""

    # --- dependencies that are submitted together with the run

    def submit_needed(self, after: Sequence[Dependency]) -> list[RunDir]:
        """Submit the runs that this one depends on, unless they are active or done, and return all of them.

        They wait for the runs `after`. Called before this run is submitted or resumed; must be idempotent. Raises RopewalkError.
        """
        return []

    def render_needed(self) -> list[tuple[RunDir, str]]:
        """Return the runs that a dry run shows before this one, each with a heading. This run has a record but no files."""
        return []

    def plan(self, config: Any) -> list[tuple[str, str]]:
        """Return rows (name, text) for a dry run: the work of this run, which has a record but no files."""
        return []

    def processes(self, resources: Resources) -> str:
        """Describe the run's processes and their devices, for a dry run."""
        nodes, engine = resources.nodes, Engine(self.run.record["engine"])
        spare = f" and {counted(resources.spare_nodes, 'spare node')}" if resources.spare_nodes else ""
        where = f"on {counted(str(nodes), 'node')}{spare}"
        gpus = f", {counted(resources.gpus, 'GPU')} a node" if resources.gpus else ""
        if engine is not Engine.RANKS:
            return f"{'Ray' if engine is Engine.RAY else 'one process'} {where}{gpus}"
        per_node = self.processes_per_node(resources)
        ranks = "..".join(str(count * per_node) for count in sorted({nodes.least, nodes.most}))
        return f"{counted(ranks, 'rank')} {where}{gpus or ', on the CPU (resources.gpus=0)'}"

    def processes_per_node(self, resources: Resources) -> int:
        """Return the number of ranks that a node has."""
        return resources.local_world_size

    def before_cancel(self) -> None:
        """Prepare the run for its cancellation, before the scheduler is asked to end it."""

    # --- `show`

    def plain(self) -> dict[str, Any]:
        """Return additional keys of `show --json`, such as a sweep's trials or a server's address."""
        return {}

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """Render the output of `show`. `details`: the result of `ropewalk.jobs.runs.show.status.details`."""
        from ropewalk.jobs.runs.show.tables import run_page

        return run_page(details)

    def pictures(self, file: Path | None) -> list[Path]:
        """Write the plots of `show --plot`, by default into the run directory, and return their paths. Raises DataError."""
        from ropewalk.jobs.runs.show.plots import plot_run

        return [plot_run(self.run, file or self.run.path / "curves.png")]

    # --- following

    def words(self) -> str:
        """Return a text beside the progress of a followed run. Called four times per second."""
        return ""

    def news(self) -> Iterable[str]:
        """Return new lines to print once while the run is followed. Called four times per second."""
        return ()

    def live(self) -> "RenderableType | None":
        """Render the content below the progress bar of a followed run. Called four times per second."""
        return None

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """Render the end of a followed run that succeeded. `result`: the last line of `run --json`."""
        from ropewalk.jobs.runs.show.tables import values_table

        return values_table(result, "succeeded")

    # --- `show` and the end of a followed run

    def outputs(self) -> list[str]:
        """Return paths and URLs of files for people that the run may have made."""
        return []

    def next_commands(self) -> list[tuple[str, str]]:
        """Return commands that may follow a run that succeeded, each with its meaning."""
        return [
            (f"ropewalk logs {self.run.id}", "output of every node and rank"),
            (f"ropewalk show {self.run.id}", "attempts, results, metrics and events"),
        ]

    def resume_words(self) -> str:
        """Return what `resume` does with the run, such as `continues from the checkpoint of step 120`."""
        steps = [int(event["step"]) for event in self.run.read_events() if event["event"] == "checkpoint"]
        return f"continues from the checkpoint of step {max(steps)}" if steps else "starts a new attempt"

    # --- `ps`

    def result_words(self) -> str:
        """Return the main results of a run that has ended, as short text for `ps`; empty: `ps` shows its progress."""
        return ""

    # --- `why`

    def explain(self) -> list[str]:
        """Return lines of evidence that `why` prints before the run's events."""
        return []

    def explain_child(self, child: RunDir) -> str:
        """Return a sentence for `why` of a child: its role in this run, and whether this run stopped it."""
        return f"It belongs to {self.run.id}."

    # --- Weights & Biases

    def wandb_group(self) -> str | None:
        """Return the run's W&B group if its configuration has none; None: the run's name, else its job."""
        return None

    def wandb_summary(self) -> dict[str, Any]:
        """Return additional content of the W&B run's summary. Called repeatedly while the run is active."""
        return {}


def short_path(path: str) -> str:
    """Return a path relative to the working directory if it is below it, so that it can be typed."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_absolute() and Path(path).is_relative_to(here) else path


def user_path(path: str | Path) -> str:
    """Return a path as the user can type it: of a command from another machine HOST:PATH, which scp and rsync take."""
    if (node := login_node()) is not None and Path(path).is_absolute():
        return f"{node.host}:{path}"
    return str(path)


def view_of(run: RunDir) -> RunView:
    """Return the view of a run, as defined by its job."""
    view: RunView = view_class(str(run.record.get("job")))(run)
    return view
