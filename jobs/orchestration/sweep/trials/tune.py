"""Adapters of Ray Tune's trials and searches that record each decision before it takes effect."""

import json
import math
import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE
from ropewalk.jobs.orchestration.sweep.config import CLUSTERS, SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_record, write_record
from ropewalk.jobs.orchestration.sweep.search.searches import Search, parameters_of
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE
from ropewalk.jobs.orchestration.sweep.trials.schedulers import REFERENCE
from ropewalk.jobs.orchestration.sweep.trials.trial import TrialFollower


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


class RecordedSearch(Searcher):  # type: ignore[misc]
    """Search whose k-th suggestion is trial k; trials with a record keep their recorded parameters."""

    def __init__(self, context: SweepContext, *, at_once: int) -> None:
        super().__init__()
        self.context, self.at_once = context, at_once
        self.search = Search(context.config.search_plan)
        self.numbers: dict[str, int] = {}  # Tune's ids of open trials → trial
        self.count = 0

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        """Return True; the search was configured in its constructor."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial after recording it; None if enough are open, FINISHED if there are no more."""
        if self.count >= self.context.config.num_trials or self.context.stop_reason():
            return str(Searcher.FINISHED)
        if len(self.numbers) >= self.at_once:
            return None
        record = read_record(self.context.sweep, self.count)
        sampled = self.search.suggest(self.count, record.sampled if record else None)
        if record is None:
            assert sampled is not None, "a grid has as many trials as combinations"
            record = TrialRecord(trial=self.count, parameters=parameters_of(self.context.config.space, sampled), sampled=sampled)
            write_record(self.context.sweep, record)
        self.numbers[trial_id] = self.count
        self.count += 1
        return {**record.sampled, "trial": record.trial}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a value that the search can compare on to it."""
        if math.isfinite(result.get(OBJECTIVE, math.nan)):
            self.search.report(self.numbers[trial_id], int(result["step"]), float(result[OBJECTIVE]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass a trial's end on to the search."""
        if result:
            self.on_trial_result(trial_id, result)
        number = self.numbers.pop(trial_id)
        record = read_record(self.context.sweep, number)
        state = record.state if record is not None else TrialState.FAILED
        self.search.finish(number, complete=state is TrialState.SUCCEEDED, failed=error or state is TrialState.FAILED)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing; the trials' records hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; the trials' records hold the state."""


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
