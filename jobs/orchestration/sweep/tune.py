"""Adapters of Ray Tune's trials, searches and schedulers that record each decision before it takes effect."""

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
from ropewalk.cluster.process.scratch import scratch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.checks import highest_rung
from ropewalk.jobs.orchestration.sweep.config import CLUSTERS, SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_record, read_records, write_record
from ropewalk.jobs.orchestration.sweep.space import Space, active_parameters, as_text, decode
from ropewalk.jobs.orchestration.sweep.trial import OBJECTIVE, TrialFollower
from ropewalk.jobs.results.metrics import latest_metrics

HUGE = 10**9
REFERENCE = "reference.json"  # the only content of Tune's checkpoints


class RunTrainable(tune.Trainable):  # type: ignore[misc]
    """Tune's actor of a trial: follows the trial's run and reports its metric. Tune reuses actors for further trials."""

    def setup(self, config: dict[str, Any], context: SweepContext) -> None:
        os.environ[PROFILES_VARIABLE] = str(context.sweep.path / CLUSTERS)
        self.trial = TrialFollower(context, config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let the previous trial's run exit, then follow another trial."""
        self.trial.leave()
        self.setup(new_config)  # type: ignore[call-arg]  # tune.with_parameters adds the context
        return True

    def step(self) -> dict[str, Any]:
        return self.trial.next_report()

    def save_checkpoint(self, checkpoint_dir: str) -> str:
        """Write a reference to the checkpoint from which another trial may continue."""
        (Path(checkpoint_dir) / REFERENCE).write_text(json.dumps(self.trial.reference()))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: str) -> None:
        """Do nothing; the trial's record determines from which run and checkpoint it continues."""

    def cleanup(self) -> None:
        """Let the trial's run exit, as Tune no longer needs the actor."""
        self.trial.leave()


# --- search


def param_space(context: SweepContext) -> dict[str, Any]:
    """Return the space that Tune samples; empty for Optuna, which has its own."""
    config = context.config
    if config.search == "optuna":
        return {}
    return {key: p.domain(crossed=config.search == "grid" or p.grid is not None) for key, p in config.space.items()}


def num_samples(context: SweepContext) -> int:
    """Return how many times Tune samples the space; an upper bound, since RecordedSearch limits the trials."""
    return 1 if context.config.search == "grid" else context.config.num_trials


class RecordedSearch(SearchAlgorithm):  # type: ignore[misc]
    """Search whose k-th suggestion is trial k; trials with a record keep their recorded parameters."""

    _metric = OBJECTIVE

    def __init__(self, context: SweepContext, *, at_once: int) -> None:
        self.context, self.at_once = context, at_once
        self.inner = _inner_search(context)
        self.count = 0
        self.live: set[str] = set()  # Tune's ids of open trials
        self.suggested: set[str] = set()

    @property
    def total_samples(self) -> int:
        return self.context.config.num_trials

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        """Return True; the search was configured in its constructor."""
        return True

    def add_configurations(self, experiments: Any) -> None:
        self.inner.add_configurations(experiments)

    def is_finished(self) -> bool:
        exhausted = self.count >= self.total_samples or self.inner.is_finished()
        return bool(self._finished or exhausted or self.context.stop_reason())

    def set_finished(self) -> None:
        self._finished = True

    def next_trial(self) -> TuneTrial | None:
        """Return the next suggestion, after recording it."""
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
        """Record a new trial, or return None if its active parameters equal those of an earlier one."""
        space, sweep = self.context.config.space, self.context.sweep
        sampled = {key: trial.config[key] for key in space}
        parameters = parameters_of(space, sampled)
        text = as_text(parameters)
        self.suggested = self.suggested or {as_text(record.parameters) for record in read_records(sweep)}
        if self.context.config.search == "grid" and text in self.suggested:
            return None
        self.suggested.add(text)
        record = TrialRecord(trial=self.count, parameters=parameters, sampled=python_values(sampled))
        write_record(sweep, record)
        return record

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass a trial's final value to the search; a failed trial has none."""
        self.live.discard(trial_id)
        number = (result or {}).get("trial")
        record = read_record(self.context.sweep, int(number)) if number is not None else None
        failed = error or (record is not None and record.state is TrialState.FAILED)
        final_result = result if result and not failed and math.isfinite(result.get(OBJECTIVE, math.nan)) else None
        self.inner.on_trial_complete(trial_id, result=final_result, error=failed)


def _inner_search(context: SweepContext) -> SearchAlgorithm:
    """Return Tune's search, set up to continue after the recorded trials."""
    config = context.config
    if config.search != "optuna":
        # suggestions depend on the seed alone, so those of recorded trials are repeated
        return BasicVariantGenerator(random_state=config.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [record.sampled for record in read_records(context.sweep)]
    # a restarted search must not repeat its first draws
    sampler = optuna.samplers.TPESampler(seed=config.seed + len(points), n_startup_trials=config.optuna.startup_trials)
    space = {key: parameter.domain(crossed=False) for key, parameter in config.space.items()}
    return SearchGenerator(
        OptunaSearch(space, metric=OBJECTIVE, mode=config.mode, points_to_evaluate=points or None, sampler=sampler)
    )


def parameters_of(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's parameters: Python values of the keys whose condition holds."""
    return active_parameters(space, {key: decode(space[key], sampled[key]) for key in space})


def python_values(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Convert numpy numbers to Python's, as JSON needs them."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in sampled.items()}


def first_trials(config: SweepConfig, count: int) -> list[dict[str, Any]]:
    """Return the parameters of the first trials of a random or grid search; nothing is recorded."""
    with scratch("w") as folder:
        context = SweepContext(
            sweep=RunDir(folder),
            attempt=1,
            config=config,
            cluster="",
            scratch=folder,
            launcher=folder,
            defaults={},
            origin={},
        )
        search = _inner_search(context)
        space, number = param_space(context), num_samples(context)
        search.add_configurations(
            [tune.Experiment("plan", RunTrainable, config=space, num_samples=number, storage_path=str(folder))]
        )
        trials: dict[str, dict[str, Any]] = {}
        while len(trials) < count and (trial := search.next_trial()) is not None:
            parameters = parameters_of(config.space, {key: trial.config[key] for key in config.space})
            trials.setdefault(as_text(parameters) if config.search == "grid" else trial.trial_id, parameters)
    return list(trials.values())


# --- schedulers


def make_scheduler(context: SweepContext, sample: JobConfig) -> TrialScheduler:
    """Return Tune's configured scheduler. It counts steps, not iterations, which restart at 0 after a restore."""
    config, interval = context.config, context.every_steps
    objective = {"time_attr": "step", "metric": OBJECTIVE, "mode": config.mode}
    if config.scheduler == "asha":
        asha = config.asha
        # a complete trial is reported as finished; Tune must not stop it just before its end
        most = max(highest_rung(config, sample), (interval or 1) + 1)
        rungs = {"grace_period": interval, "reduction_factor": asha.reduction_factor, "brackets": asha.brackets}
        return ASHAScheduler(**objective, max_t=most, **rungs)
    if config.scheduler == "median":
        return MedianStoppingRule(
            **objective, grace_period=interval, min_samples_required=config.median.min_trials, min_time_slice=HUGE
        )
    if config.scheduler == "pbt":
        random.seed(config.seed)  # Tune draws from the global generators
        np.random.seed(config.seed)
        return RecordedPbt(
            context,
            **objective,
            hyperparam_mutations={key: p.domain(crossed=False) for key, p in config.space.items()},
            quantile_fraction=config.pbt.quantile,
            resample_probability=config.pbt.resample_probability,
            perturbation_factors=config.pbt.factors,
            synch=config.pbt.synchronous,
            log_config=False,
        )
    return FIFOScheduler()


class RecordedPbt(PopulationBasedTraining):  # type: ignore[misc]
    """Population-based training that records each exploit step when it is decided."""

    def __init__(self, context: SweepContext, **settings: Any) -> None:
        assert context.every_steps is not None
        super().__init__(perturbation_interval=context.every_steps, **settings)
        self.context, self.interval_steps = context, context.every_steps

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Restore the time of the last decision on a trial that continues after a killed driver."""
        super().on_trial_add(tune_controller, trial)
        record = read_record(self.context.sweep, trial.config["trial"])
        if record is not None and record.runs:
            step = int(latest_metrics(self.context.run(record.runs[-1])).get("step") or 0)
            self._trial_state[trial].last_perturbation_time = step // self.interval_steps * self.interval_steps

    def _reference(self, source: TuneTrial) -> dict[str, Any]:
        checkpoint = self._trial_state[source].last_checkpoint
        reference: dict[str, Any] = json.loads((Path(checkpoint.path) / REFERENCE).read_text())
        return reference

    def _exploit(self, tune_controller: Any, trial: TuneTrial, trial_to_clone: TuneTrial) -> None:
        if self._reference(trial_to_clone):  # otherwise it has no checkpoint yet
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["trial"] = trial.config["trial"]
        source = self._reference(trial_to_clone)
        space, sweep = self.context.config.space, self.context.sweep
        record = read_record(sweep, config["trial"])
        assert record is not None
        record.sampled = python_values({key: config[key] for key in space})
        record.parameters = parameters_of(space, record.sampled)
        origin = {"from_trial": trial_to_clone.config["trial"], "from_run": source["run"], "step": source["step"]}
        record.lineage.append({**origin, "parameters": record.parameters})
        write_record(sweep, record)
        sweep.event("exploited", trial=record.trial, **origin, parameters=record.parameters)
        return config, operations


class Decisions(Callback):  # type: ignore[misc]
    """Records that the scheduler stopped a trial, and stops its run at once."""

    def __init__(self, context: SweepContext) -> None:
        self.context = context
        self.broken: list[int] = []  # trials whose actor (not run) failed repeatedly

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Note that Tune gave up on a trial's actor, whose error is in the driver's log."""
        self.broken.append(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record a trial stopped by the scheduler; one that ended by itself is already recorded."""
        record = read_record(self.context.sweep, trial.config["trial"])
        if record is None or record.state.final or self.context.stop_reason():
            return
        record.stopped_at = int((trial.last_result or {}).get("step") or 0)
        record.end(TrialState.STOPPED, f"{self.context.config.scheduler} stopped it")
        write_record(self.context.sweep, record)
        self.context.sweep.event("trial_stopped", trial=record.trial, step=record.stopped_at)
        if record.runs:
            self.context.run(record.runs[-1]).request_cancel()
