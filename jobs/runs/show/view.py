"""What general code asks of a run's job: its children, how it is shown, followed, explained and cancelled."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.registry import view_class

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ropewalk.jobs.runs.show.endpoint import Endpoint


class RunView:
    """The answers that hold for every job. A job overrides some in a subclass, and names that in its JobSpec:
    `view="ropewalk.jobs.orchestration.sweep.view:SweepView"`. Light commands import the subclass, so its module imports rich,
    torch and the like
    inside functions only.
    """

    serves = False  # whether the job's runs answer requests

    def __init__(self, run: RunDir) -> None:
        self.run = run

    # --- what answers requests

    def endpoint(self) -> "Endpoint | None":
        """Where the run answers requests now; None: nowhere."""
        return None

    # --- what belongs to it

    def children(self) -> list[RunDir]:
        """The runs that this one has started: cancelled and copied with it. Some may lie on another machine only."""
        return []

    def child_words(self, child: RunDir) -> str:
        """What a child is in this run, in a few words, such as `trial 3`."""
        return ""

    # --- runs that are submitted with it, and that it waits for

    def submit_needed(self, after: Sequence[RunDir]) -> list[RunDir]:
        """Submit the runs that this one waits for, unless they are under way or done; all of them. They wait for `after`.

        Asked before this run is submitted or resumed; must be safe to repeat. Raises RopewalkError.
        """
        return []

    def render_needed(self) -> list[tuple[RunDir, str]]:
        """The runs that a dry run shows before this one, each with a heading. This run has a record, and nothing on disk."""
        return []

    def before_cancel(self) -> None:
        """Leave word in the run before its scheduler is asked to end it."""

    # --- what is shown of it

    def plain(self) -> dict[str, Any]:
        """Keys that `show --json` prints besides those of every run: a sweep's trials, a server's address."""
        return {}

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """What `show` prints. `details` is what `ropewalk.jobs.runs.show.status.details` says of the run."""
        from ropewalk.jobs.runs.show.tables import run_page

        return run_page(details)

    def pictures(self, file: Path | None) -> list[Path]:
        """Write what `show --plot` draws, by default into the run's directory. Raises DataError if nothing can be drawn yet."""
        from ropewalk.jobs.runs.show.plots import plot_run

        return [plot_run(self.run, file or self.run.path / "curves.png")]

    # --- what is told while it is followed, and at its end

    def words(self) -> str:
        """What is said beside the progress of a followed run; called four times a second."""
        return ""

    def news(self) -> Iterable[str]:
        """Lines that are told once while the run is followed; asked four times a second."""
        return ()

    def live(self) -> "RenderableType | None":
        """What stands below the bar of a followed run; drawn four times a second."""
        return None

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """What stands at the end of a followed run that succeeded. `result` is the last line of `run --json`."""
        from ropewalk.jobs.runs.show.tables import values_table

        return values_table(result, "succeeded")

    # --- why it is in its state

    def explain(self) -> list[str]:
        """Lines for `why` that stand before the run's own events."""
        return []

    def explain_child(self, child: RunDir) -> str:
        """A sentence for `why` of a child: what it is in this run, and whether this run stopped it."""
        return f"It belongs to {self.run.id}."

    # --- Weights & Biases

    def wandb_group(self) -> str | None:
        """The W&B group of the run, where its configuration names none; None: the run's name, else its job."""
        return None

    def wandb_summary(self) -> dict[str, Any]:
        """What the summary of the W&B run holds besides its metrics; asked repeatedly while the run lasts."""
        return {}


def view_of(run: RunDir) -> RunView:
    """The view of a run, as its job defines it."""
    found: RunView = view_class(str(run.record.get("job")))(run)
    return found
