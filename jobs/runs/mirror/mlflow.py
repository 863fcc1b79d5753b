"""MLflow: one MLflow run for all attempts, at $MLFLOW_TRACKING_URI, else in files of the run directory."""

import os
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.runs.mirror.trackers import place_of

MOST_METRICS = 1000  # that MLflow takes in one batch
RUN = "run.json"  # the id of the MLflow run


class MLflow:
    """Sends metrics in batches."""

    def __init__(self, run: RunDir) -> None:
        place = place_of(run, "mlflow")
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}/mlflow.db")
        known = (read_json(place / RUN) or {}).get("run_id")
        self._run = known or self._create(run)
        write_json(place / RUN, {"run_id": self._run})
        self._waiting: list[Any] = []

    def _create(self, run: RunDir) -> str:
        config = run.record.get("config") or {}
        name = (config.get("wandb") or {}).get("project") or "ropewalk"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        begun = self._client.search_runs([experiment], f"attributes.run_name = '{run.id}'")  # by a process that was killed then
        if begun:
            return str(begun[0].info.run_id)
        made: str = self._client.create_run(experiment, run_name=run.id).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in config.items() if not isinstance(value, dict | list)]
        self._client.log_batch(made, params=[*params, Param("job", str(run.record["job"]))])
        return made

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Send the metrics of a step, with those of others."""
        self._waiting += [Metric(name, value, int(seconds * 1000), step) for name, value in metrics.items()]
        if len(self._waiting) >= MOST_METRICS // 2:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:MOST_METRICS])
            self._waiting = self._waiting[MOST_METRICS:]
