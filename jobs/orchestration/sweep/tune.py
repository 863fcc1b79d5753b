"""Ray Tune with a memory of our own: its searches, schedulers and trials, with each decision recorded before its effect."""

import json
import math
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.search_generator import SearchGenerator

from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE
from ropewalk.cluster.config import JobConfig
from ropewalk.jobs.orchestration.sweep.checks import highest_rung
from ropewalk.jobs.orchestration.sweep.context import CLUSTERS, SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_record, read_records, write_record
from ropewalk.jobs.orchestration.sweep.space import Space, active, as_text, decoded
from ropewalk.jobs.orchestration.sweep.trial import OBJECTIVE, TrialFollower
from ropewalk.jobs.results.metrics import latest_metrics

HUGE = 10**9
REFERENCE = "reference.json"  # all that a checkpoint of Tune holds


class RunTrainable(tune.Trainable):  # type: ignore[misc]
    """The actor that Tune takes for a trial: it follows a run, and reports what the scheduler wants to know.

    Tune gives the actor another trial when it is done with the first.
    """

    def setup(self, config: dict[str, Any], context: SweepContext) -> None:
        """Take a trial."""
        os.environ[PROFILES_VARIABLE] = str(context.sweep.path / CLUSTERS)
        self.trial = TrialFollower(context, config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial, once the run of the one before has exited."""
        self.trial.leave()
        self.setup(new_config)  # type: ignore[call-arg]  # tune.with_parameters adds the context
        return True

    def step(self) -> dict[str, Any]:
        """The next value of the trial."""
        return self.trial.next_report()

    def save_checkpoint(self, checkpoint_dir: str) -> str:
        """Name the checkpoint of the trial's run from which another trial may continue."""
        (Path(checkpoint_dir) / REFERENCE).write_text(json.dumps(self.trial.reference()))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: str) -> None:
        """Do nothing: the trial's record says whether it continues with its own run or from another's checkpoint."""

    def cleanup(self) -> None:
        """Let the trial's run exit; Tune needs the actor no more."""
        self.trial.leave()


# --- search


def param_space(context: SweepContext) -> dict[str, Any]:
    """What Tune itself samples from; Optuna was given the space at its making."""
    config = context.config
    if config.search == "optuna":
        return {}
    return {key: p.domain(crossed=config.search == "grid" or p.grid is not None) for key, p in config.space.items()}


def num_samples(context: SweepContext) -> int:
    """How often Tune crosses the whole grid; more than are taken of it, where there are other keys."""
    return 1 if context.config.search == "grid" else context.config.num_trials


class RecordedSearch(SearchAlgorithm):  # type: ignore[misc]
    """The k-th suggestion is trial k. One that is recorded takes the parameters that it was given the first time."""

    _metric = OBJECTIVE

    def __init__(self, context: SweepContext, *, at_once: int) -> None:
        self.context, self.at_once = context, at_once
        self.inner = _inner_search(context)
        self.count = 0
        self.live: set[str] = set()  # Tune's ids of trials that are not over
        self.seen: set[str] = set()

    @property
    def total_samples(self) -> int:
        """How many trials there will be at most."""
        return self.context.config.num_trials

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        """Accept what the search has been told at its making."""
        return True

    def add_configurations(self, experiments: Any) -> None:
        """Hand Tune's experiments on to the search."""
        self.inner.add_configurations(experiments)

    def is_finished(self) -> bool:
        """Whether nothing more will be suggested."""
        exhausted = self.count >= self.total_samples or self.inner.is_finished()
        return bool(self._finished or exhausted or self.context.stop_reason())

    def set_finished(self) -> None:
        """Suggest nothing more."""
        self._finished = True

    def next_trial(self) -> TuneTrial | None:
        """The next suggestion, written down."""
        while not self.is_finished() and len(self.live) < self.at_once:
            trial = self.inner.next_trial()
            if trial is None:
                return None
            record = read_record(self.context.sweep, self.count) or self._record(trial)
            if record is None:
                self.inner.on_trial_complete(trial.trial_id)
                continue
            self.live.add(trial.trial_id)
            trial.config.update({**record.sampled, "trial": self.count})
            self.count += 1
            return trial
        return None

    def _record(self, trial: TuneTrial) -> TrialRecord | None:
        """Record a new trial; None if an earlier one has its parameters, since what differs does not apply."""
        space, sweep = self.context.config.space, self.context.sweep
        sampled = {key: trial.config[key] for key in space}
        parameters = parameters_of(space, sampled)
        text = as_text(parameters)
        self.seen = self.seen or {as_text(record.parameters) for record in read_records(sweep)}
        if self.context.config.search == "grid" and text in self.seen:
            return None
        self.seen.add(text)
        record = TrialRecord(trial=self.count, parameters=parameters, sampled=plain(sampled))
        write_record(sweep, record)
        return record

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand a trial's value on to the search."""
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand a trial's end on to the search; one that failed has no value to learn from."""
        self.live.discard(trial_id)
        number = (result or {}).get("trial")
        record = read_record(self.context.sweep, int(number)) if number is not None else None
        failed = error or (record is not None and record.state is TrialState.FAILED)
        known = result if result and not failed and math.isfinite(result.get(OBJECTIVE, math.nan)) else None
        self.inner.on_trial_complete(trial_id, result=known, error=failed)


def _inner_search(context: SweepContext) -> SearchAlgorithm:
    """Tune's own search, which continues after the trials that are recorded."""
    config = context.config
    if config.search != "optuna":
        # its suggestions depend on the seed alone, so that those of recorded trials come again
        return BasicVariantGenerator(random_state=config.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [record.sampled for record in read_records(context.sweep)]
    # a search that begins again must not draw again what it drew first
    sampler = optuna.samplers.TPESampler(seed=config.seed + len(points), n_startup_trials=config.optuna.startup_trials)
    space = {key: parameter.domain(crossed=False) for key, parameter in config.space.items()}
    return SearchGenerator(
        OptunaSearch(space, metric=OBJECTIVE, mode=config.mode, points_to_evaluate=points or None, sampler=sampler)
    )


def parameters_of(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial is run with: plain values of the keys whose condition holds."""
    return active(space, {key: decoded(space[key], sampled[key]) for key in space})


def plain(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Sampled values with numpy's numbers as Python's: JSON takes no others."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in sampled.items()}


# --- schedulers


def make_scheduler(context: SweepContext, sample: JobConfig) -> TrialScheduler:
    """Tune's scheduler, as the keys of the sweep say; it measures time in steps, since iterations begin anew after a restore."""
    config, interval = context.config, context.every_steps
    judged = {"time_attr": "step", "metric": OBJECTIVE, "mode": config.mode}
    if config.scheduler == "asha":
        asha = config.asha
        # a trial that reaches the end is reported as finished; Tune must not stop it a moment before
        most = max(highest_rung(config, sample), (interval or 1) + 1)
        rungs = {"grace_period": interval, "reduction_factor": asha.reduction_factor, "brackets": asha.brackets}
        return ASHAScheduler(**judged, max_t=most, **rungs)
    if config.scheduler == "median":
        return MedianStoppingRule(
            **judged, grace_period=interval, min_samples_required=config.median.min_trials, min_time_slice=HUGE
        )
    if config.scheduler == "pbt":
        random.seed(config.seed)  # Tune's own draws from these
        np.random.seed(config.seed)
        return RecordedPbt(
            context,
            **judged,
            hyperparam_mutations={key: p.domain(crossed=False) for key, p in config.space.items()},
            quantile_fraction=config.pbt.quantile,
            resample_probability=config.pbt.resample_probability,
            perturbation_factors=config.pbt.factors,
            synch=config.pbt.synchronous,
            log_config=False,
        )
    return FIFOScheduler()


class RecordedPbt(PopulationBasedTraining):  # type: ignore[misc]
    """Population based training whose exploits are written down as they are decided."""

    def __init__(self, context: SweepContext, **settings: Any) -> None:
        assert context.every_steps is not None
        super().__init__(perturbation_interval=context.every_steps, **settings)
        self.context, self.interval_steps = context, context.every_steps

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Tell Tune that a trial which resumes after a killed driver had its last decision at the interval that it has passed."""
        super().on_trial_add(tune_controller, trial)
        record = read_record(self.context.sweep, trial.config["trial"])
        if record is not None and record.runs:
            step = int(latest_metrics(self.context.run(record.runs[-1])).get("step") or 0)
            self._trial_state[trial].last_perturbation_time = step // self.interval_steps * self.interval_steps

    def _reference(self, source: TuneTrial) -> dict[str, Any]:
        checkpoint = self._trial_state[source].last_checkpoint
        found: dict[str, Any] = json.loads((Path(checkpoint.path) / REFERENCE).read_text())
        return found

    def _exploit(self, tune_controller: Any, trial: TuneTrial, trial_to_clone: TuneTrial) -> None:
        if self._reference(trial_to_clone):  # else it has no checkpoint yet
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["trial"] = trial.config["trial"]
        source = self._reference(trial_to_clone)
        space, sweep = self.context.config.space, self.context.sweep
        record = read_record(sweep, config["trial"])
        assert record is not None
        record.sampled = plain({key: config[key] for key in space})
        record.parameters = parameters_of(space, record.sampled)
        origin = {"from_trial": trial_to_clone.config["trial"], "from_run": source["run"], "step": source["step"]}
        record.lineage.append({**origin, "parameters": record.parameters})
        write_record(sweep, record)
        sweep.event("exploited", trial=record.trial, **origin, parameters=record.parameters)
        return config, operations


class Decisions(Callback):  # type: ignore[misc]
    """Writes down that the scheduler stops a trial, and tells its run at once."""

    def __init__(self, context: SweepContext) -> None:
        self.context = context
        self.broken: list[int] = []  # trials whose actor failed again and again; a run that fails is another thing

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Note that Tune has given up on a trial's actor; what it raised is in the driver's log."""
        self.broken.append(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record a trial that the scheduler has stopped; one that ended by itself has its end written down already."""
        record = read_record(self.context.sweep, trial.config["trial"])
        if record is None or record.state.final or self.context.stop_reason():
            return
        record.stopped_at = int((trial.last_result or {}).get("step") or 0)
        record.end(TrialState.STOPPED, f"{self.context.config.scheduler} stopped it")
        write_record(self.context.sweep, record)
        self.context.sweep.event("trial_stopped", trial=record.trial, step=record.stopped_at)
        if record.runs:
            self.context.run(record.runs[-1]).request_cancel()
