"""What a sweep has found so far: its trials, the best of them, the steps spent and the steps saved. Reads files only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from cluster.run.files import read_json
from cluster.spec import RunState
from jobs.runs.status import all_runs, find_run, states
from jobs.sweep.curves import RunSeries, joined
from jobs.sweep.records import FOLDER

OPEN = frozenset({"PENDING", "RUNNING", "PAUSED"})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial: its record, and what its runs have written."""

    trial: int
    runs: Sequence[str] = ()  # several where PBT went on from another trial's checkpoint
    state: str = "PENDING"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[tuple[int, float]] = ()  # (step, metric), steps ascending
    metric: float | None = None  # the newest value, as Ray Tune judges; None: none yet, or not a number any more
    best_metric: float | None = None  # the best on the way
    steps: int = 0  # the step it has come to
    steps_spent: int = 0  # with those done again after a resume
    steps_full: int | None = None  # the steps of a trial that nobody stops
    seconds: float = 0.0
    stopped_at: int | None = None
    cause: str = ""
    run_state: str | None = None  # of its newest run, where the scheduler was asked
    lineage: Sequence[Mapping[str, Any]] = ()
    created: float = 0.0
    ended: float | None = None

    @property
    def run(self) -> str | None:
        """The newest of its runs."""
        return self.runs[-1] if self.runs else None

    def plain(self) -> dict[str, Any]:
        """What `show --json` prints of it."""
        left_out = {"points", "steps_full"}
        return {"trial": self.trial, "run": self.run, **{k: v for k, v in vars(self).items() if k not in left_out}}


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A sweep at one moment."""

    run: RunDir
    metric: str
    mode: str  # min or max
    wanted: int | None  # trials the sweep was asked for
    trials: Sequence[Trial]  # by number

    @property
    def job(self) -> str:
        """The job whose configuration is searched."""
        return str(self.run.record["config"].get("job"))

    @cached_property
    def ranked(self) -> list[Trial]:
        """The best first; those without a value after them, those that failed last."""
        sign = 1 if self.mode == "min" else -1
        return sorted(
            self.trials,
            key=lambda t: (t.state == RunState.FAILED, t.metric is None, sign * (t.metric or 0.0), t.trial),
        )

    @property
    def standing(self) -> list[Trial]:
        """Those that can win, the best first: they have a value and did not fail."""
        return [trial for trial in self.ranked if trial.metric is not None and trial.state != RunState.FAILED]

    @property
    def best(self) -> Trial | None:
        """The best trial so far."""
        return next(iter(self.standing), None)

    @property
    def by_state(self) -> dict[str, int]:
        """How many trials are in each state."""
        return dict(Counter(trial.state for trial in self.trials))

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
        """Steps that the scheduler spared by stopping trials."""
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
    """Reads a sweep again and again: each time only what is new of the trials' metrics."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.config: Mapping[str, Any] = run.record.get("config") or {}
        self._series: dict[str, RunSeries] = {}

    def read(self) -> SweepResults:
        """The sweep as it is now."""
        records = sorted((read_json(path) or {} for path in (self.run.path / FOLDER).glob("[0-9]*.json")), key=_number)
        trials = [self._trial(record) for record in records if record]
        longest = max((trial.steps for trial in trials if trial.state == RunState.SUCCEEDED), default=None)
        return SweepResults(
            run=self.run,
            metric=str(self.config.get("metric", "")),
            mode=str(self.config.get("mode", "min")),
            wanted=self.config.get("trials") or (read_json(self.run.progress) or {}).get("total"),
            trials=[t if t.steps_full else replace(t, steps_full=longest) for t in trials],
        )

    def _trial(self, record: Mapping[str, Any]) -> Trial:
        series = [self._read_run(run_id) for run_id in record.get("runs") or ()]
        points = joined(series)
        values = [value for _, value in points]
        newest = series[-1] if series else None
        better = min if self.config.get("mode", "min") == "min" else max
        state, cause = _state_of(record, newest)
        return Trial(
            trial=int(record["trial"]),
            runs=tuple(record.get("runs") or ()),
            state=state,
            parameters=record.get("parameters") or {},
            points=points,
            metric=values[-1] if values and not (newest and newest.diverged) else None,
            best_metric=better(values) if values else None,
            steps=max((one.step for one in series), default=0) if newest is None or not newest.step else newest.step,
            steps_spent=sum(one.steps_spent for one in series),
            steps_full=_full_steps(self.config, record),
            seconds=sum(one.seconds for one in series),
            stopped_at=record.get("stopped_at"),
            cause=cause,
            lineage=record.get("lineage") or (),
            created=float(record.get("created") or 0),
            ended=record.get("ended"),
        )

    def _read_run(self, run_id: str) -> RunSeries:
        if run_id not in self._series:
            # trials lie beside their sweep, under whatever name this machine sees the runs' root
            self._series[run_id] = RunSeries(RunDir(self.run.path.parent / run_id), str(self.config.get("metric", "")))
        self._series[run_id].refresh()
        return self._series[run_id]


def read_sweep(run: RunDir) -> SweepResults:
    """The sweep as it is now, read once."""
    return SweepReader(run).read()


def with_run_states(results: SweepResults) -> SweepResults:
    """The same, with what the schedulers say of the runs of trials that are open: one question to each."""
    root = results.run.path.parent
    runs = {trial.run: RunDir(root / trial.run) for trial in results.trials if trial.state in OPEN and trial.run}
    asked = states(list(runs.values())) if runs else {}
    said = {trial.trial: asked[trial.run].state.value for trial in results.trials if trial.run in asked}
    return replace(results, trials=[replace(t, run_state=said.get(t.trial)) for t in results.trials])


def is_sweep(run: RunDir) -> bool:
    """The run is a sweep: it has trials, which are runs."""
    return run.record.get("job") == "sweep"


def find_sweep(word: str) -> RunDir:
    """The sweep that a user means; `latest` is the latest sweep. Raises ConfigError where the run is none."""
    sweeps = [run for run in all_runs() if is_sweep(run)] if word == "latest" else []
    run = sweeps[-1] if sweeps else find_run(word)
    if not is_sweep(run):
        parent = run.record.get("parent")
        hint = f"it is a trial of {parent}" if parent else f"it is a run of {run.record.get('job')}"
        raise ConfigError(f"{run.id} is not a sweep: {hint}; `ropewalk ps --all` lists the runs")
    return run


def trials_cluster(run: RunDir) -> str:
    """The cluster that a sweep's trials run on."""
    where = run.record.get("trials_on") or {}
    return str(where.get("cluster") or run.record.get("cluster") or "local")


def metric_word(value: float) -> str:
    """A metric in five digits: trials often differ in the fourth."""
    return f"{value:,.5g}"


def _number(record: Mapping[str, Any]) -> int:
    return int(record.get("trial", 0))


def _state_of(record: Mapping[str, Any], newest: RunSeries | None) -> tuple[str, str]:
    """What the driver wrote; where it has not seen yet that the trial's run is over, what became of the run."""
    state, cause = str(record.get("state", "PENDING")), str(record.get("cause") or "")
    if state in OPEN and state != "PAUSED" and newest is not None and newest.outcome is not None:
        return newest.outcome.state.value, cause or newest.outcome.cause
    return state, cause


def _full_steps(config: Mapping[str, Any], record: Mapping[str, Any]) -> int | None:
    base = config.get("base")
    steps = (record.get("parameters") or {}).get("steps", base.get("steps") if isinstance(base, Mapping) else None)
    return int(steps) if isinstance(steps, (int, float)) else None
