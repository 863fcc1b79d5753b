"""Ray Tune's schedulers, set up for a sweep; population-based training records each exploit step when it is decided."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler

from ropewalk.cluster.config import JobConfig
from ropewalk.jobs.orchestration.sweep.checks import decision_steps, highest_rung
from ropewalk.jobs.orchestration.sweep.config import SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.records import read_record, write_record
from ropewalk.jobs.orchestration.sweep.search.searches import parameters_of
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE
from ropewalk.jobs.results.metrics import latest_metrics

HUGE = 10**9
REFERENCE = "reference.json"  # the only content of Tune's checkpoints


def make_scheduler(config: SweepConfig, sample: JobConfig, context: SweepContext | None = None) -> TrialScheduler:
    """Return Tune's configured scheduler. It counts steps, not iterations, which restart at 0 after a restore.

    `context` is needed for a population, whose decisions it records.
    """
    interval = decision_steps(config, sample)
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
        assert context is not None
        random.seed(config.seed)  # Tune draws from the global generators
        np.random.seed(config.seed)
        return RecordedPbt(
            context,
            **objective,
            hyperparam_mutations={key: p.domain() for key, p in config.space.items()},
            quantile_fraction=config.pbt.quantile,
            resample_probability=config.pbt.resample_probability,
            perturbation_factors=config.pbt.factors,
            synch=config.pbt.synchronous,
            log_config=False,
        )
    return FIFOScheduler()


_WITHOUT_SEARCH = SimpleNamespace(search_alg=None)


class RecordedPbt(PopulationBasedTraining):  # type: ignore[misc]
    """Population-based training that records each exploit step when it is decided."""

    def __init__(self, context: SweepContext, **settings: Any) -> None:
        assert context.every_steps is not None
        super().__init__(perturbation_interval=context.every_steps, **settings)
        self.context, self.interval_steps = context, context.every_steps

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Restore the time of the last decision on a trial that continues after a killed driver.

        Tune refuses searches that learn from results, by the class in which it wraps any `Searcher`; that of a population draws
        at random.
        """
        super().on_trial_add(_WITHOUT_SEARCH, trial)
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
        record.sampled = {key: value.item() if hasattr(value := config[key], "item") else value for key in space}
        record.parameters = parameters_of(space, record.sampled)
        origin = {"from_trial": trial_to_clone.config["trial"], "from_run": source["run"], "step": source["step"]}
        record.lineage.append({**origin, "parameters": record.parameters})
        write_record(sweep, record)
        sweep.event("exploited", trial=record.trial, **origin, parameters=record.parameters)
        return config, operations
