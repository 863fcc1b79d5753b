"""What a sweep has found so far: its trials, the best of them, the steps spent and the steps saved. Reads files only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower, joined
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_records
from ropewalk.jobs.runs.show.status import all_runs, find_run, newest, states


@dataclass(kw_only=True)
class TrialResult(TrialRecord):
    """One trial: its record, and what its runs have written."""

    points: Sequence[tuple[int, float]] = ()  # (step, metric), steps ascending
    metric: float | None = None  # the newest value, as Ray Tune judges; None: none yet, or not a number any more
    best_metric: float | None = None  # the best on the way
    steps: int = 0  # the step it has come to
    steps_spent: int = 0  # with those done again after a resume
    steps_full: int | None = None  # the steps of a trial that nobody stops
    seconds: float = 0.0
    run_state: str | None = None  # of its newest run, where the scheduler was asked

    @property
    def run(self) -> str | None:
        """The newest run of the trial."""
        return self.runs[-1] if self.runs else None

    def plain(self) -> dict[str, Any]:
        """What `show --json` prints of the trial."""
        left_out = {"points", "steps_full", "sampled", "with_sweep"}
        return {"trial": self.trial, "run": self.run, **{k: v for k, v in vars(self).items() if k not in left_out}}


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A sweep at one moment."""

    run: RunDir
    metric: str
    mode: str  # min or max
    wanted: int | None  # trials the sweep was asked for
    trials: Sequence[TrialResult]  # by number

    @property
    def job(self) -> str:
        """The job whose configuration is searched."""
        return str(self.run.record["config"].get("job"))

    @cached_property
    def ranked(self) -> list[TrialResult]:
        """All trials, the best first; those without a value after them, those that failed last."""
        sign = 1 if self.mode == "min" else -1
        return sorted(
            self.trials,
            key=lambda t: (t.state == TrialState.FAILED, t.metric is None, sign * (t.metric or 0.0), t.trial),
        )

    @property
    def eligible(self) -> list[TrialResult]:
        """Trials that can win, the best first: they have a value and did not fail."""
        return [trial for trial in self.ranked if trial.metric is not None and trial.state != TrialState.FAILED]

    @property
    def best(self) -> TrialResult | None:
        """The best trial so far."""
        return next(iter(self.eligible), None)

    @property
    def by_state(self) -> dict[str, int]:
        """How many trials are in each state."""
        return dict(Counter(trial.state.value for trial in self.trials))

    @property
    def states(self) -> str:
        """`1 running, 8 stopped, 3 succeeded`."""
        return ", ".join(f"{count} {state.lower()}" for state, count in sorted(self.by_state.items()))

    @property
    def keys(self) -> list[str]:
        """Every parameter that some trial has."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.parameters))

    @property
    def spent(self) -> int:
        """Steps that all trials have done."""
        return sum(trial.steps_spent for trial in self.trials)

    @property
    def full(self) -> int | None:
        """Steps that the trials begun so far would do if nobody stopped them; None where no trial tells its length."""
        begun = [trial.steps_full for trial in self.trials if trial.runs]
        return sum(steps for steps in begun if steps) if any(begun) else None

    @property
    def saved(self) -> int:
        """Steps that the scheduler saved by stopping trials."""
        stopped = [trial for trial in self.trials if trial.state == "STOPPED"]
        return sum(max(0, (trial.steps_full or trial.steps) - trial.steps) for trial in stopped)

    @property
    def seconds(self) -> float:
        """Seconds that all trials ran, one after the other."""
        return sum(trial.seconds for trial in self.trials)

    def plain(self) -> dict[str, Any]:
        """What `show --json` prints besides the run's own keys."""
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
        """The results of the sweep's own run: the best trial, and what it cost to find it."""
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
    """Reads a sweep repeatedly: each time only what is new of the trials' metrics."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.config: Mapping[str, Any] = run.record.get("config") or {}
        self._series: dict[str, MetricFollower] = {}

    def read(self) -> SweepResults:
        """The sweep as it is now."""
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
        points = joined(series)
        values = [value for _, value in points]
        newest = series[-1] if series else None
        better = min if self.config.get("mode", "min") == "min" else max
        if not record.state.final and record.state is not TrialState.PAUSED and newest is not None and newest.outcome is not None:
            # the driver has not seen yet that the trial's run is over
            record.state, record.cause = TrialState(newest.outcome.state.value), record.cause or newest.outcome.cause
        return TrialResult(
            **vars(record),
            points=points,
            metric=values[-1] if values and not (newest and newest.diverged) else None,
            best_metric=better(values) if values else None,
            steps=max((one.step for one in series), default=0) if newest is None or not newest.step else newest.step,
            steps_spent=sum(one.steps_spent for one in series),
            steps_full=_full_steps(self.config, record),
            seconds=sum(one.seconds for one in series),
        )

    def _read_run(self, run_id: str) -> MetricFollower:
        if run_id not in self._series:
            # trials lie beside their sweep, under whatever name this machine sees the runs' root
            self._series[run_id] = MetricFollower(RunDir(self.run.path.parent / run_id), str(self.config.get("metric", "")))
        self._series[run_id].refresh()
        return self._series[run_id]


def read_sweep(run: RunDir) -> SweepResults:
    """The sweep as it is now, read once."""
    return SweepReader(run).read()


def with_run_states(results: SweepResults) -> SweepResults:
    """The results, with what the schedulers say of the runs of trials that are not over: one question to each."""
    root = results.run.path.parent
    runs = {trial.run: RunDir(root / trial.run) for trial in results.trials if trial.run and not trial.state.final}
    asked = states(list(runs.values())) if runs else {}
    said = {trial.trial: asked[trial.run].state.value for trial in results.trials if trial.run in asked}
    return replace(results, trials=[replace(t, run_state=said.get(t.trial)) for t in results.trials])


def is_sweep(run: RunDir) -> bool:
    """Whether a run is a sweep: it has trials, which are runs."""
    return run.record.get("job") == "sweep"


def find_sweep(word: str) -> RunDir:
    """The sweep that a user means; `latest` is the latest sweep. Raises ConfigError where the run is none."""
    run = (newest(all_runs(), is_sweep) if word == "latest" else None) or find_run(word)
    if not is_sweep(run):
        parent = run.record.get("parent")
        hint = f"it is a trial of {parent}" if parent else f"it is a run of {run.record.get('job')}"
        raise ConfigError(f"{run.id} is not a sweep: {hint}; `ropewalk ps --all` lists the runs")
    return run


def trials_cluster(run: RunDir) -> str:
    """The cluster that a sweep's trials run on."""
    where = run.record.get("trials_on") or {}
    return str(where.get("cluster") or run.record.get("cluster") or "local")


def format_metric(value: float) -> str:
    """A metric in five digits: trials often differ in the fourth."""
    return f"{value:,.5g}"


def _full_steps(config: Mapping[str, Any], record: TrialRecord) -> int | None:
    base = config.get("base")
    steps = record.parameters.get("steps", base.get("steps") if isinstance(base, Mapping) else None)
    return int(steps) if isinstance(steps, (int, float)) else None
