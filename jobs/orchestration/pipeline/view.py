"""How a pipeline is shown, followed and explained: by its steps."""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.runs import config_of_run, step_runs, submit_steps
from ropewalk.jobs.runs.show.status import final_outcome, states
from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_SECONDS = 1.0  # a followed pipeline is looked at so often


class PipelineView(RunView):
    """A pipeline's steps are its children: runs beside it, which it waits for."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._told: dict[str, str] = {}
        self._look_at = 0.0

    @cached_property
    def config(self) -> PipelineConfig:
        """The pipeline's keys."""
        return config_of_run(self.run)

    @cached_property
    def _all_steps(self) -> dict[str, RunDir]:
        return step_runs(self.run, self.config)

    def steps(self) -> dict[str, RunDir]:
        """The runs of the steps, in order; whoever submits the pipeline may be about to make some."""
        if len(self._all_steps) < len(self.config.steps):
            del self._all_steps
        return self._all_steps

    def children(self) -> list[RunDir]:
        """The runs of the steps, in the order of what needs what."""
        return list(self.steps().values())

    def child_words(self, child: RunDir) -> str:
        """`train, after data`."""
        name = str(child.record.get("step"))
        needed = self.config.needs(name) if name in self.config.steps else []
        return f"{name}, after {' and '.join(needed)}" if needed else name

    def submit_needed(self, after: Sequence[RunDir]) -> list[RunDir]:
        """Submit the steps that are neither done nor under way; the pipeline's own job comes after all of them."""
        return submit_steps(self.run, after)

    def render_needed(self) -> list[tuple[RunDir, str]]:
        """What would be submitted before it: a run for each step, with made-up runs in the place of those to come."""
        from ropewalk.jobs.runs.submit.submit import make_record, unwritten_run

        cluster = str(self.run.record["cluster"])
        configs = self.config.all_configs()
        return [
            (unwritten_run(own, make_record(self.config.steps[name].job, own, cluster, {})), self._heading(name))
            for name, own in configs.items()
        ]

    def _heading(self, name: str) -> str:
        needed = " and ".join(self.config.needs(name))
        return f"the step {name}" + (f", once {needed} succeeded" if needed else "")

    # --- what is shown of it

    def plain(self) -> dict[str, Any]:
        """The steps by name: run, state, needs."""
        found = states(self.children())
        return {
            "steps": {
                name: {"run": run.id, "state": found[run.id].state.value, "needs": self.config.needs(name)}
                for name, run in self.steps().items()
            }
        }

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """The run, then its steps."""
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        return Group(run_page({**details, "results": {}, "metrics": {}}), self._table())

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """The steps, each with its results."""
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import values_table

        results = [(name, run.results()) for name, run in self.steps().items()]
        return Group(self._table(), *(values_table(found, name) for name, found in results if found))

    def _table(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import shorten, state_text, table

        made = table("STEP", "NEEDS", "RUN", "STATE", "REASON", title="steps")
        found = states(self.children())
        for name, run in self.steps().items():
            state = found[run.id]
            made.add_row(name, " ".join(self.config.needs(name)), run.id, state_text(state.state), shorten(state.reason, 90))
        return made

    def news(self) -> Iterable[str]:
        """A line for each step that has begun or ended since it was asked last."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        for name, run in self.steps().items():
            outcome = final_outcome(run)
            word = f"{outcome.state}: {outcome.cause}" if outcome else "RUNNING" if has_agents(run) else ""
            if word and self._told.get(name) != word:
                self._told[name] = word
                yield f"step {name} ({run.id}) {word}"

    # --- why it is in its state

    def explain(self) -> list[str]:
        """A line for each step that did not succeed, and what goes on with them."""
        found = states(self.children())
        lines = [
            f"step {name} ({run.id}) {found[run.id].state}" + (f": {found[run.id].reason}" if found[run.id].reason else "")
            for name, run in self.steps().items()
            if found[run.id].state is not RunState.SUCCEEDED
        ]
        missing = [name for name in self.config.steps if name not in self.steps()]
        if missing:
            lines.append(f"not submitted yet: {', '.join(missing)}; `ropewalk resume {self.run.id}` submits them")
        return lines

    def explain_child(self, child: RunDir) -> str:
        """Which step the run is."""
        step, whole = child.record.get("step"), self.run.id
        return f"It is the step {step} of {whole}; `ropewalk resume {whole}` goes on with all that did not succeed."

    def wandb_group(self) -> str:
        """The pipeline's own id, unless its keys name a group: its steps are W&B runs of the same."""
        return self.run.id
