"""Tracker for MLflow: one MLflow run for all attempts, at $MLFLOW_TRACKING_URI, else in the run directory."""

import os
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.runs.mirror.trackers import tracker_folder

MOST_METRICS = 1000  # in one batch, a limit of MLflow
RUN = "run.json"  # file with the id of the MLflow run


class MLflow:
    """Sends metrics in batches."""

    def __init__(self, run: RunDir) -> None:
        folder = tracker_folder(run, "mlflow")
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db")
        self._run = (read_json(folder / RUN) or {}).get("run_id") or self._create(run)
        write_json(folder / RUN, {"run_id": self._run})
        self._waiting: list[Any] = []

    def _create(self, run: RunDir) -> str:
        config = run.record.get("config") or {}
        name = (config.get("wandb") or {}).get("project") or "ropewalk"
        existing = self._client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"attributes.run_name = '{run.id}'")  # left by a killed process
        if runs:
            return str(runs[0].info.run_id)
        run_id: str = self._client.create_run(experiment, run_name=run.id).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in config.items() if not isinstance(value, dict | list)]
        self._client.log_batch(run_id, params=[*params, Param("job", str(run.record["job"]))])
        return run_id

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        self._waiting += [Metric(name, value, int(seconds * 1000), step) for name, value in metrics.items()]
        if len(self._waiting) >= MOST_METRICS // 2:
            self.flush()

    def flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:MOST_METRICS])
            self._waiting = self._waiting[MOST_METRICS:]
