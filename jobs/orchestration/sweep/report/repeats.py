"""Runs of a sweep's configurations with new seeds, as `ropewalk confirm` records them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower
from ropewalk.jobs.runs.show.status import final_outcome

RECORD = "confirm.json"  # in the sweep's directory: parameters, seed and run, written before submission


def read_repeats(sweep: RunDir) -> dict[tuple[str, int], RunDir]:
    """Return the recorded runs by parameters (`key_of`) and seed."""
    lines = (read_json(sweep.path / RECORD) or {"runs": []})["runs"]
    return {(key_of(line["parameters"]), line["seed"]): _run_of(sweep, line["run"]) for line in lines}


def key_of(parameters: Mapping[str, Any]) -> str:
    """Return a text that is the same for equal parameters."""
    return json.dumps(parameters, sort_keys=True, default=str)


def final_metric(run: RunDir, metric: str) -> float | None:
    """Return the last value of a run that succeeded; None for another one."""
    outcome, series = final_outcome(run), MetricFollower(run, metric)
    series.refresh()
    succeeded = outcome is not None and outcome.state is RunState.SUCCEEDED
    return series.points[max(series.points)] if succeeded and series.points and not series.diverged else None


def repeated_metrics(sweep: RunDir, metric: str, parameters: Mapping[str, Any]) -> list[float]:
    """Return the metrics of a configuration's runs with new seeds."""
    runs = [run for (key, _), run in read_repeats(sweep).items() if key == key_of(parameters)]
    return [value for run in runs if (value := final_metric(run, metric)) is not None]


def _run_of(sweep: RunDir, reference: str) -> RunDir:
    """Return a recorded run: an id is a run beside the sweep, a path one on a cluster with its own root."""
    return RunDir(Path(reference) if "/" in reference else sweep.path.parent / reference)
