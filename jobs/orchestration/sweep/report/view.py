"""Show, follow, explain and cancel a sweep by its trials."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.text import counted, format_parameters
from ropewalk.jobs.orchestration.sweep.records import SWEEP_CANCELLED, TrialState, path_of, read_records
from ropewalk.jobs.orchestration.sweep.report.results import SweepReader, SweepResults, format_metric, read_sweep, with_run_states
from ropewalk.jobs.orchestration.sweep.search.searches import SOBOL, Search, parameters_of
from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ropewalk.jobs.orchestration.sweep.config import SweepConfig

READ_SECONDS = 1.0  # minimum time between two reads of a followed sweep
MAX_NAMED = 8  # trials named per cause
FIRST_TRIALS = 5  # in a dry run


class SweepView(RunView):
    """View of a sweep, whose children are the runs of its trials."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._reader: SweepReader | None = None
        self._read_at, self._results = 0.0, None  # type: float, SweepResults | None

    def results(self) -> SweepResults:
        """Return the state of the sweep, at most a second old."""
        now = time.monotonic()
        if self._results is None or now >= self._read_at + READ_SECONDS:
            self._reader = self._reader or SweepReader(self.run)
            self._results, self._read_at = self._reader.read(), now
        return self._results

    def children(self) -> list[RunDir]:
        return [RunDir(self.run.path.parent / name) for record in read_records(self.run) for name in record.runs]

    def plan(self, config: "SweepConfig") -> list[tuple[str, str]]:
        """Return the number of trials, the first ones, and the work of each."""
        from ropewalk.jobs.orchestration.sweep.checks import sample_config
        from ropewalk.jobs.registry import find_job, view_class
        from ropewalk.jobs.runs.submit.records import make_record

        sample, spec = sample_config(config), find_job(config.job)
        trial = view_class(config.job)(RunDir(self.run.path, record=make_record(config.job, sample, "local", {})))
        count = min(config.num_trials, FIRST_TRIALS)
        first = f"search={config.search_name}, scheduler={config.scheduler}, {config.mode}imize {config.metric}"
        rows = [("trials", f"{config.num_trials} runs of {spec.name}; {first}")]
        drawn = config.search_name != "optuna" and not config.warm_start  # gp draws, too, until it has learnt from some trials
        if not drawn or (config.search_name in SOBOL and find_spec("scipy") is None):  # a client may lack it
            rows.append(("first trials", f"chosen by {config.search_name} while the sweep runs"))
        else:
            rows += [(f"trial {number}", format_parameters(values)) for number, values in enumerate(first_trials(config, count))]
        of_each = [*trial.plan(sample), ("processes", trial.processes(sample.resources))]
        return [*rows, *[(f"each: {name}", text) for name, text in of_each]]

    def child_words(self, child: RunDir) -> str:
        return f"trial {child.record.get('trial')}"

    def before_cancel(self) -> None:
        """Write the cancel request for the driver first, also on a remote volume, so that it starts no further trial."""
        from ropewalk.jobs.runs.show.remote import write_to_original

        self.run.request_cancel()
        self.run.event(SWEEP_CANCELLED)
        write_to_original(self.run, self.run.requests.path.name)

    def plain(self) -> dict[str, Any]:
        return with_run_states(read_sweep(self.run)).plain()

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        from ropewalk.jobs.orchestration.sweep.report.tables import sweep_page

        return sweep_page(details, with_run_states(read_sweep(self.run)))

    def pictures(self, file: Path | None) -> list[Path]:
        """Write an overview of all plots, each plot by itself, and an HTML page."""
        from ropewalk.jobs.orchestration.sweep.report.html_report import write_report

        return write_report(self.run, file or self.run.path / "sweep.png")

    def words(self) -> str:
        """Return a status line such as `3 running  best validation/loss 3.214 (trial 4)  1,200 steps`."""
        results = self.results()
        running, best = results.by_state.get("RUNNING", 0), results.best
        parts = [f"{running} running"] if running else []
        if best is not None and best.metric is not None:
            parts.append(f"best {results.metric} {format_metric(best.metric)} (trial {best.trial})")
        return "  ".join([*parts, f"{results.spent:,} steps"])

    def live(self) -> "RenderableType":
        from ropewalk.jobs.orchestration.sweep.report.tables import live_table

        return live_table(self.results())

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        from ropewalk.jobs.orchestration.sweep.report.tables import sweep_ending

        return sweep_ending(read_sweep(self.run))

    def outputs(self) -> list[str]:
        return [str(self.run.path / name) for name in ("sweep.html", "pictures")]

    def next_commands(self) -> list[tuple[str, str]]:
        run = self.run.id
        return [
            (f"ropewalk best {run} best.yaml", "write the best configuration; `ropewalk run -c best.yaml` runs it"),
            (f"ropewalk confirm {run}", "test the win over the runner-up with new seeds"),
            (f"ropewalk show {run} --plot", "write plots and an HTML page"),
            ("ropewalk ps --all --tree", "the runs of the trials"),
        ]

    def explain(self) -> list[str]:
        """Return lines with trials by state, the best so far, and each cause of failed trials once."""
        results = read_sweep(self.run)
        if not results.trials:
            return ["no trial has started"]
        lines = [f"{len(results.trials)} of {results.wanted or len(results.trials)} trials: {results.states}"]
        best = results.best
        if best is not None and best.metric is not None:
            value = f"{results.metric} {format_metric(best.metric)}"
            lines.append(f"best: trial {best.trial}, {value} ({format_parameters(best.parameters)})")
        return [*lines, *failures(results)]

    def explain_child(self, child: RunDir) -> str:
        trial = child.record.get("trial")
        record = read_json(path_of(self.run, int(trial))) if trial is not None else None
        values = record or {}
        if values.get("state") != "STOPPED":
            return f"It is trial {trial} of {self.run.id}."
        step = values.get("stopped_at")
        after = f" after step {step}" if step is not None else ""
        return f"It is trial {trial} of {self.run.id}, which stopped it{after}: {values.get('cause') or 'no cause was recorded'}."

    def wandb_group(self) -> str:
        return self.run.id

    def wandb_summary(self) -> dict[str, Any]:
        results = self.results()
        best = results.best
        values: dict[str, Any] = {f"sweep/{state.lower()}": count for state, count in results.by_state.items()}
        values |= {"sweep/steps_spent": results.spent, "sweep/steps_saved": results.saved}
        if best is not None:
            values |= {"best/trial": best.trial, "best/run": best.run, "best/metric": best.metric, "best/steps": best.steps}
            values |= {f"best/parameters/{key}": value for key, value in best.parameters.items()}
        return values


def first_trials(config: "SweepConfig", count: int) -> list[dict[str, Any]]:
    """Return the parameters of the first trials of a search that has not learnt from results."""
    search = Search(config.search_plan)
    sampled = (search.suggest(number) for number in range(count))
    return [parameters_of(config.space, values) for values in sampled if values is not None]


def failures(results: SweepResults) -> list[str]:
    """Return each cause of failed trials, most frequent first, such as `2 trials failed (3, 8): rank 0: ...`."""
    grouped: dict[str, list[int]] = {}
    for trial in results.trials:
        if trial.state == TrialState.FAILED:
            grouped.setdefault(trial.cause or "no cause was recorded", []).append(trial.trial)
    lines = []
    for cause, trials in sorted(grouped.items(), key=lambda item: -len(item[1])):
        named = ", ".join(map(str, trials[:MAX_NAMED])) + (", ..." if len(trials) > MAX_NAMED else "")
        lines.append(f"{counted(len(trials), 'trial')} failed ({named}): {cause}")
    return lines
