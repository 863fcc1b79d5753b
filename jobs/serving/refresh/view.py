"""How a refresh is shown, followed and explained: by its rounds."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import states
from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_SECONDS = 1.0


class RefreshView(RunView):
    """The runs of a refresh's steps are its children."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._told: set[str] = set()
        self._look_at = 0.0

    def children(self) -> list[RunDir]:
        """The runs of all steps, in the order in which they were made."""
        name = self.run.record["config"].get("name") or "refresh"
        return [run for run in RunDir.all(self.run.path.parent) if run.id.startswith(str(name).lower()[:30]) and self._mine(run)]

    def _mine(self, run: RunDir) -> bool:
        return run.record.get("parent") == self.run.id

    def child_words(self, child: RunDir) -> str:
        """`round 1: evaluate the candidate`."""
        from ropewalk.jobs.serving.refresh.plan import WORDS

        number, _, step = str(child.record.get("step")).partition("-")
        return f"round {number}: {WORDS.get(step, step)}"

    def explain_child(self, child: RunDir) -> str:
        """Which step the run is."""
        return f"It is a step of {self.run.id} ({self.child_words(child)}); `ropewalk resume {self.run.id}` goes on with it."

    def plain(self) -> dict[str, Any]:
        """The facts of each round."""
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        return {"rounds": read_rounds(self.run)}

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """The run, then its rounds and their steps."""
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        return Group(run_page({**details, "results": {}, "metrics": {}}), self._rounds(), self._steps())

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """The rounds, each with its outcome, and where the report lies."""
        from rich.console import Group

        from ropewalk.jobs.serving.refresh.report import PAGE

        return Group(self._rounds(), f"report: {self.run.path / PAGE}")

    def _rounds(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import table
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        made = table(">ROUND", "BEGAN BY", "FROM", "CANDIDATE", "OUTCOME", title="rounds")
        for facts in read_rounds(self.run):
            why = str(facts.get("trigger", {}).get("words", ""))
            candidate = str(facts.get("version") or facts.get("candidate") or "")
            made.add_row(str(facts["round"]), why, str(facts.get("base", "")), candidate, outcome_of(facts))
        return made

    def _steps(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import shorten, state_text, table

        made = table("STEP", "RUN", "STATE", "REASON", title="steps")
        children = self.children()
        found = states(children)
        for run in children:
            state = found[run.id]
            made.add_row(self.child_words(run), run.id, state_text(state.state), shorten(state.reason, 90))
        return made

    def news(self) -> Iterable[str]:
        """A line for each stage that a round has reached since it was asked last."""
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        for facts in read_rounds(self.run):
            line = f"round {facts['round']}: {outcome_of(facts)}"
            if line not in self._told:
                self._told.add(line)
                yield line

    def explain(self) -> list[str]:
        """Where each round that is not promoted stands, or why it ended."""
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        return [f"round {facts['round']}: {outcome_of(facts)}" for facts in read_rounds(self.run)]

    def wandb_group(self) -> str:
        """The refresh's own id: its steps are W&B runs of the same group, unless its keys name one."""
        return self.run.id
