"""Ray Tune's search and scheduler with a memory of our own: each decision is in the trial's record before its effect."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import SearchAlgorithm

from cluster.run.directory import RunDir
from jobs.sweep.context import Scene
from jobs.sweep.records import TrialRecord, TrialState, read_record, read_records, write_record
from jobs.sweep.space import Space, active, as_text, decoded
from jobs.sweep.trainable import REFERENCE
from jobs.sweep.trial import OBJECTIVE


class RecordedSearch(SearchAlgorithm):  # type: ignore[misc]
    """The k-th suggestion is trial k. One that is recorded takes the parameters that it was given the first time."""

    def __init__(self, inner: SearchAlgorithm, scene: Scene, *, most: int, at_once: int) -> None:
        self.inner, self.scene, self.most, self.at_once = inner, scene, most, at_once
        self.count = 0
        self.live: dict[str, int] = {}  # Tune's id of a trial that is not over: our number
        self.seen: set[str] = set()

    @property
    def searcher(self) -> Any:
        """What BOHB's scheduler looks for."""
        return self.inner.searcher

    @property
    def metric(self) -> str:
        """As Tune's results name it."""
        return OBJECTIVE

    @property
    def total_samples(self) -> int:
        """How many trials there will be at most."""
        return self.most

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        """The search has been told all at its making."""
        return True

    def add_configurations(self, experiments: Any) -> None:
        """Hand it on."""
        self.inner.add_configurations(experiments)

    def is_finished(self) -> bool:
        """Nothing more will be suggested."""
        return bool(self._finished or self.count >= self.most or self.inner.is_finished() or self.scene.order())

    def set_finished(self) -> None:
        """Suggest nothing more."""
        self._finished = True

    def next_trial(self) -> TuneTrial | None:
        """The next suggestion, written down."""
        while not self.is_finished() and len(self.live) < self.at_once:
            trial = self.inner.next_trial()
            if trial is None:
                return None
            record = read_record(self.scene.sweep, self.count) or self._record(trial)
            if record is None:
                self.inner.on_trial_complete(trial.trial_id)
                continue
            self.live[trial.trial_id] = self.count
            trial.config.update({**record.sampled, "trial": self.count, "scratch": str(self.scene.scratch)})
            self.count += 1
            return trial
        return None

    def _record(self, trial: TuneTrial) -> TrialRecord | None:
        """A new trial; None if its parameters are those of an earlier one, since what differs does not apply."""
        space = self.scene.config.space
        sampled = {key: trial.config[key] for key in space}
        parameters = parameters_of(space, sampled)
        text = as_text(parameters)
        if self.scene.config.search == "grid" and text in self._parameters_so_far():
            return None
        self.seen.add(text)
        record = TrialRecord(trial=self.count, parameters=parameters, sampled=plain(sampled))
        write_record(self.scene.sweep, record)
        return record

    def _parameters_so_far(self) -> set[str]:
        if not self.seen:
            self.seen = {as_text(record.parameters) for record in read_records(self.scene.sweep)}
        return self.seen

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand it on."""
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand it on; a trial that failed has no value to learn from."""
        self.live.pop(trial_id, None)
        number = (result or {}).get("trial")
        record = read_record(self.scene.sweep, int(number)) if number is not None else None
        failed = error or (record is not None and record.state is TrialState.FAILED)
        known = result if result and not failed and math.isfinite(result.get(OBJECTIVE, math.nan)) else None
        self.inner.on_trial_complete(trial_id, result=known, error=failed)


def parameters_of(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial is run with: plain values, of keys whose condition holds."""
    return active(space, {key: decoded(space[key], sampled[key]) for key in space})


def plain(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy as those of Python: JSON takes no others."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in sampled.items()}


class RecordedPbt(PopulationBasedTraining):  # type: ignore[misc]
    """Population based training whose exploits are written down as they are decided."""

    def __init__(self, scene: Scene, interval_steps: int, **settings: Any) -> None:
        super().__init__(perturbation_interval=interval_steps, **settings)
        self.scene, self.interval_steps = scene, interval_steps

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A trial that goes on after a killed driver had its last decision at the interval that it has passed."""
        super().on_trial_add(tune_controller, trial)
        record = read_record(self.scene.sweep, trial.config["trial"])
        if record is not None and record.runs:
            from jobs.tracking.metrics import latest_metrics

            step = int(latest_metrics(RunDir(self.scene.sweep.path.parent / record.runs[-1])).get("step") or 0)
            self._trial_state[trial].last_perturbation_time = step // self.interval_steps * self.interval_steps

    def _reference(self, donor: TuneTrial) -> dict[str, Any]:
        checkpoint = self._trial_state[donor].last_checkpoint
        found: dict[str, Any] = json.loads((Path(checkpoint.path) / REFERENCE).read_text())
        return found

    def _exploit(self, tune_controller: Any, trial: TuneTrial, trial_to_clone: TuneTrial) -> None:
        if self._reference(trial_to_clone):  # else it has no checkpoint yet
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["trial"] = trial.config["trial"]
        donor = self._reference(trial_to_clone)
        space, sweep = self.scene.config.space, self.scene.sweep
        record = read_record(sweep, config["trial"])
        assert record is not None
        record.sampled = plain({key: config[key] for key in space})
        record.parameters = parameters_of(space, record.sampled)
        origin = {"from_trial": trial_to_clone.config["trial"], "from_run": donor["run"], "step": donor["step"]}
        record.lineage.append({**origin, "parameters": record.parameters})
        write_record(sweep, record)
        sweep.event("exploited", trial=record.trial, **origin, parameters=record.parameters)
        return config, operations


class Decisions(Callback):  # type: ignore[misc]
    """Writes down that the scheduler stops a trial, and tells its run at once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.broken: list[int] = []  # trials whose actor failed again and again; a run that fails is another thing

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune has given up on a trial's actor; what it raised is in the driver's log."""
        self.broken.append(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial is over for Tune: by its own end, which is written down already, or by a decision."""
        record = read_record(self.scene.sweep, trial.config["trial"])
        if record is None or record.state.final or self.scene.order():
            return
        record.stopped_at = int((trial.last_result or {}).get("step") or 0)
        record.end(TrialState.STOPPED, f"{self.scene.config.scheduler} stopped it")
        write_record(self.scene.sweep, record)
        self.scene.sweep.event("trial_stopped", trial=record.trial, step=record.stopped_at)
        if record.runs:
            RunDir(self.scene.sweep.path.parent / record.runs[-1]).request_cancel()
