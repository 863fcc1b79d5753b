"""Show, follow and explain a pipeline by its steps."""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.job import config_of_run, step_runs, submit_steps
from ropewalk.jobs.runs.show.status import final_outcome, states
from ropewalk.jobs.runs.show.view import RunView, view_of

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 1.0  # between two looks at a followed pipeline


class PipelineView(RunView):
    """View of a pipeline, whose children are the runs of its steps."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._reported: dict[str, str] = {}
        self._next_look = 0.0

    @cached_property
    def config(self) -> PipelineConfig:
        return config_of_run(self.run)

    @cached_property
    def _all_steps(self) -> dict[str, RunDir]:
        return step_runs(self.run, self.config)

    def steps(self) -> dict[str, RunDir]:
        """Return the runs of the steps, in order; looked up again while a submission is still creating some."""
        if len(self._all_steps) < len(self.config.steps):
            del self._all_steps
        return self._all_steps

    def children(self) -> list[RunDir]:
        return list(self.steps().values())

    def child_words(self, child: RunDir) -> str:
        name = str(child.record.get("step"))
        needed = self.config.needs(name) if name in self.config.steps else []
        return f"{name}, after {' and '.join(needed)}" if needed else name

    def submit_needed(self, after: Sequence[Dependency]) -> list[RunDir]:
        """Submit the steps that have neither succeeded nor are active; the pipeline's own job runs after all of them."""
        return submit_steps(self.run, after)

    def render_needed(self) -> list[tuple[RunDir, str]]:
        """Return the run that would be submitted for each step, with placeholders for run ids, and a heading for it."""
        from ropewalk.jobs.runs.submit.dry_run import dry_run_directory
        from ropewalk.jobs.runs.submit.records import make_record

        cluster = str(self.run.record["cluster"])
        configs = self.config.all_configs()
        return [
            (
                dry_run_directory(config, make_record(self.config.steps[name].job, config, cluster, {}), self.run.path.parent),
                self._heading(name),
            )
            for name, config in configs.items()
        ]

    def plan(self, config: PipelineConfig) -> list[tuple[str, str]]:
        """Return a row for each step: its job, the steps that it waits for, and its processes."""
        return [
            (heading, f"{run.record['job']}: {view_of(run).processes(run.resources())}") for run, heading in self.render_needed()
        ]

    def _heading(self, name: str) -> str:
        needed = " and ".join(self.config.needs(name))
        return f"the step {name}" + (f", once {needed} succeeded" if needed else "")

    # --- show and follow

    def plain(self) -> dict[str, Any]:
        step_states = states(self.children())
        return {
            "steps": {
                name: {"run": run.id, "state": step_states[run.id].state.value, "needs": self.config.needs(name)}
                for name, run in self.steps().items()
            }
        }

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        return Group(run_page({**details, "results": {}, "metrics": {}}), self._table())

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import values_table

        results = [(name, run.results()) for name, run in self.steps().items()]
        return Group(self._table(), *(values_table(values, name) for name, values in results if values))

    def outputs(self) -> list[str]:
        return [path for step in self.steps().values() for path in view_of(step).outputs()]

    def next_commands(self) -> list[tuple[str, str]]:
        """Return the way to the runs of the steps, and what follows the last one."""
        steps = list(self.steps().values())
        return [("ropewalk ps --all --tree", "the runs of the steps"), *(view_of(steps[-1]).next_commands() if steps else [])]

    def _table(self) -> "RenderableType":
        from ropewalk.jobs.runs.show.tables import shorten, state_text, table

        steps = table("STEP", "NEEDS", "RUN", "STATE", "REASON", title="steps")
        step_states = states(self.children())
        for name, run in self.steps().items():
            state = step_states[run.id]
            steps.add_row(name, " ".join(self.config.needs(name)), run.id, state_text(state.state), shorten(state.reason, 90))
        return steps

    def news(self) -> Iterable[str]:
        """Yield a line for each step that has started or ended since the last call."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + REFRESH_SECONDS
        for name, run in self.steps().items():
            outcome = final_outcome(run)
            state = f"{outcome.state}: {outcome.cause}" if outcome else "RUNNING" if has_agents(run) else ""
            if state and self._reported.get(name) != state:
                self._reported[name] = state
                yield f"step {name} ({run.id}) {state}"

    # --- explain

    def explain(self) -> list[str]:
        """Return a line for each step that has not succeeded, and one for steps that are not submitted."""
        step_states = states(self.children())
        lines = [
            f"step {name} ({run.id}) {step_states[run.id].state}"
            + (f": {step_states[run.id].reason}" if step_states[run.id].reason else "")
            for name, run in self.steps().items()
            if step_states[run.id].state is not RunState.SUCCEEDED
        ]
        missing = [name for name in self.config.steps if name not in self.steps()]
        if missing:
            lines.append(f"not submitted yet: {', '.join(missing)}; `ropewalk resume {self.run.id}` submits them")
        return lines

    def explain_child(self, child: RunDir) -> str:
        step, whole = child.record.get("step"), self.run.id
        return f"It is the step {step} of {whole}; `ropewalk resume {whole}` resumes every step that did not succeed."

    def wandb_group(self) -> str:
        return self.run.id
