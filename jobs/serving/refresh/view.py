"""Display of a refresh: its rounds and the runs of its steps."""

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
    """Shows the rounds of a refresh; the runs of its steps are its children."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._reported: set[str] = set()
        self._next_look = 0.0

    def children(self) -> list[RunDir]:
        """Return the runs of all steps, in order of creation."""
        name = self.run.record["config"].get("name") or "refresh"
        return [run for run in RunDir.all(self.run.path.parent, str(name).lower()[:30]) if self._mine(run)]

    def _mine(self, run: RunDir) -> bool:
        return run.record.get("parent") == self.run.id

    def child_words(self, child: RunDir) -> str:
        """`round 1: evaluate the candidate`."""
        from ropewalk.jobs.serving.refresh.plan import STEP_NAMES

        number, _, step = str(child.record.get("step")).partition("-")
        return f"round {number}: {STEP_NAMES.get(step, step)}"

    def explain_child(self, child: RunDir) -> str:
        return f"It is a step of {self.run.id} ({self.child_words(child)}); `ropewalk resume {self.run.id}` continues it."

    def plain(self) -> dict[str, Any]:
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        return {"rounds": read_rounds(self.run)}

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        return Group(run_page({**details, "results": {}, "metrics": {}}), self._rounds(), self._steps())

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """Render the rounds with their outcomes."""
        return self._rounds()

    def outputs(self) -> list[str]:
        from ropewalk.jobs.serving.refresh.report import PAGE

        return [str(self.run.path / PAGE)]

    def next_commands(self) -> list[tuple[str, str]]:
        return [
            ("ropewalk models", "versions and aliases of the registry"),
            (f"ropewalk rollback {self.run.record['config']['model']}", "serve the version before"),
        ]

    def _rounds(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import table
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        rows = table(">ROUND", "TRIGGER", "BASE", "CANDIDATE", "OUTCOME", title="rounds")
        for facts in read_rounds(self.run):
            reason = str(facts.get("trigger", {}).get("message", ""))
            candidate = str(facts.get("version") or facts.get("candidate") or "")
            rows.add_row(str(facts["round"]), reason, str(facts.get("base", "")), candidate, outcome_of(facts))
        return rows

    def _steps(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import shorten, state_text, table

        rows = table("STEP", "RUN", "STATE", "REASON", title="steps")
        children = self.children()
        state_of = states(children)
        for run in children:
            state = state_of[run.id]
            rows.add_row(self.child_words(run), run.id, state_text(state.state), shorten(state.reason, 90))
        return rows

    def news(self) -> Iterable[str]:
        """Yield a line for each stage that a round has reached since the last call."""
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        for facts in read_rounds(self.run):
            line = f"round {facts['round']}: {outcome_of(facts)}"
            if line not in self._reported:
                self._reported.add(line)
                yield line

    def explain(self) -> list[str]:
        """Return a line per round: its outcome, or its current stage."""
        from ropewalk.jobs.serving.refresh.report import outcome_of
        from ropewalk.jobs.serving.refresh.rounds import read_rounds

        return [f"round {facts['round']}: {outcome_of(facts)}" for facts in read_rounds(self.run)]

    def wandb_group(self) -> str:
        """Return the refresh's id: its steps share one W&B group, unless its keys name another."""
        return self.run.id
