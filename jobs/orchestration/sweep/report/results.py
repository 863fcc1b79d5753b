"""Results of a sweep so far: trials, the best one, steps spent and saved. Reads files only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower, join_runs
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_records
from ropewalk.jobs.runs.show.status import find_run, newest, newest_first, states


@dataclass(kw_only=True)
class TrialResult(TrialRecord):
    """A trial's record with the metrics of its runs."""

    points: Sequence[tuple[int, float]] = ()  # (step, metric), steps ascending
    metric: float | None = None  # newest value, which Ray Tune compares; None: no value, or diverged
    best_metric: float | None = None  # best value so far
    steps: int = 0  # newest step
    steps_spent: int = 0  # including steps repeated after a resume
    steps_full: int | None = None  # steps of a complete trial
    seconds: float = 0.0
    run_state: str | None = None  # state of its newest run, if the scheduler was queried

    @property
    def run(self) -> str | None:
        return self.runs[-1] if self.runs else None

    def plain(self) -> dict[str, Any]:
        """Return the trial's output of `show --json`."""
        hidden = {"points", "steps_full", "sampled", "with_sweep"}
        return {"trial": self.trial, "run": self.run, **{k: v for k, v in vars(self).items() if k not in hidden}}


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A snapshot of a sweep."""

    run: RunDir
    metric: str
    mode: str  # min or max
    wanted: int | None  # configured number of trials
    trials: Sequence[TrialResult]  # by number

    @property
    def job(self) -> str:
        return str(self.run.record["config"].get("job"))

    @cached_property
    def ranked(self) -> list[TrialResult]:
        """All trials, best first, then those without a value, then failed ones."""
        sign = 1 if self.mode == "min" else -1
        return sorted(
            self.trials, key=lambda t: (t.state == TrialState.FAILED, t.metric is None, sign * (t.metric or 0.0), t.trial)
        )

    @property
    def eligible(self) -> list[TrialResult]:
        """Trials that have a value and did not fail, best first."""
        return [trial for trial in self.ranked if trial.metric is not None and trial.state != TrialState.FAILED]

    @property
    def best(self) -> TrialResult | None:
        return next(iter(self.eligible), None)

    @property
    def by_state(self) -> dict[str, int]:
        return dict(Counter(trial.state.value for trial in self.trials))

    @property
    def states(self) -> str:
        """Summary such as `1 running, 8 stopped, 3 succeeded`."""
        return ", ".join(f"{count} {state.lower()}" for state, count in sorted(self.by_state.items()))

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for trial in self.trials for key in trial.parameters))

    @property
    def spent(self) -> int:
        """Steps done by all trials."""
        return sum(trial.steps_spent for trial in self.trials)

    @property
    def full(self) -> int | None:
        """Steps that the trials started so far would take to completion; None if that is unknown."""
        started = [trial.steps_full for trial in self.trials if trial.runs]
        return sum(steps for steps in started if steps) if any(started) else None

    @property
    def saved(self) -> int:
        """Steps saved by stopping trials early."""
        stopped = [trial for trial in self.trials if trial.state == "STOPPED"]
        return sum(max(0, (trial.steps_full or trial.steps) - trial.steps) for trial in stopped)

    @property
    def seconds(self) -> float:
        """Total run time of all trials."""
        return sum(trial.seconds for trial in self.trials)

    def plain(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "mode": self.mode,
            "trials": [trial.plain() for trial in self.ranked],
            "by_state": self.by_state,
            "best": self.best.plain() if self.best else None,
            "spent": self.spent,
            "saved": self.saved,
            "full": self.full,
            "spent_seconds": self.seconds,
        }

    def summary(self) -> dict[str, Any]:
        """Return the results of the sweep's own run: the best trial and the cost of the search."""
        best = self.best
        return {
            "best_trial": best.trial if best else None,
            "best_run": best.run if best else None,
            "parameters": dict(best.parameters) if best else {},
            "metric": self.metric,
            "best": best.metric if best else None,
            "trials": self.by_state,
            "steps_spent": self.spent,
            "steps_saved": self.saved,
        }


class SweepReader:
    """Reads a sweep repeatedly, each time only the new metrics of its trials."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.config: Mapping[str, Any] = run.record.get("config") or {}
        self._series: dict[str, MetricFollower] = {}

    def read(self) -> SweepResults:
        trials = [self._trial(record) for record in read_records(self.run)]
        longest = max((trial.steps for trial in trials if trial.state == TrialState.SUCCEEDED), default=None)
        return SweepResults(
            run=self.run,
            metric=str(self.config.get("metric", "")),
            mode=str(self.config.get("mode", "min")),
            wanted=self.config.get("trials") or (read_json(self.run.progress) or {}).get("total"),
            trials=[t if t.steps_full else replace(t, steps_full=longest) for t in trials],
        )

    def _trial(self, record: TrialRecord) -> TrialResult:
        series = [self._read_run(run_id) for run_id in record.runs]
        points = join_runs(series)
        values = [value for _, value in points]
        newest = series[-1] if series else None
        better = min if self.config.get("mode", "min") == "min" else max
        if not record.state.final and record.state is not TrialState.PAUSED and newest is not None and newest.outcome is not None:
            # the driver has not noticed yet that the run ended
            record.state, record.cause = TrialState(newest.outcome.state.value), record.cause or newest.outcome.cause
        return TrialResult(
            **vars(record),
            points=points,
            metric=values[-1] if values and not (newest and newest.diverged) else None,
            best_metric=better(values) if values else None,
            steps=max((run.step for run in series), default=0) if newest is None or not newest.step else newest.step,
            steps_spent=sum(run.steps_spent for run in series),
            steps_full=_full_steps(self.config, record),
            seconds=sum(run.seconds for run in series),
        )

    def _read_run(self, run_id: str) -> MetricFollower:
        if run_id not in self._series:
            # trials are beside their sweep, whatever path this machine has for the runs' root
            self._series[run_id] = MetricFollower(RunDir(self.run.path.parent / run_id), str(self.config.get("metric", "")))
        self._series[run_id].refresh()
        return self._series[run_id]


def read_sweep(run: RunDir) -> SweepResults:
    """Read a sweep once."""
    return SweepReader(run).read()


def with_run_states(results: SweepResults) -> SweepResults:
    """Return the results with the schedulers' states of open trials' runs, using one query per scheduler."""
    root = results.run.path.parent
    runs = {trial.run: RunDir(root / trial.run) for trial in results.trials if trial.run and not trial.state.final}
    run_states = states(list(runs.values())) if runs else {}
    trial_states = {trial.trial: run_states[trial.run].state.value for trial in results.trials if trial.run in run_states}
    return replace(results, trials=[replace(t, run_state=trial_states.get(t.trial)) for t in results.trials])


def is_sweep(run: RunDir) -> bool:
    """Return True if a run is a sweep."""
    return run.record.get("job") == "sweep"


def find_sweep(reference: str) -> RunDir:
    """Find a sweep by its reference; `latest` is the latest sweep. Raises ConfigError if the run is not a sweep."""
    run = (newest(newest_first(), is_sweep) if reference == "latest" else None) or find_run(reference)
    if not is_sweep(run):
        parent = run.record.get("parent")
        hint = f"it is a trial of {parent}" if parent else f"it is a run of {run.record.get('job')}"
        raise ConfigError(f"{run.id} is not a sweep: {hint}; `ropewalk ps --all` lists the runs")
    return run


def trials_cluster(run: RunDir) -> str:
    """Return the cluster of a sweep's trials."""
    record = run.record.get("trials_on") or {}
    return str(record.get("cluster") or run.record.get("cluster") or "local")


def format_metric(value: float) -> str:
    """Format a metric with five digits, as trials often differ in the fourth."""
    return f"{value:,.5g}"


def _full_steps(config: Mapping[str, Any], record: TrialRecord) -> int | None:
    base = config.get("base")
    steps = record.parameters.get("steps", base.get("steps") if isinstance(base, Mapping) else None)
    return int(steps) if isinstance(steps, (int, float)) else None
