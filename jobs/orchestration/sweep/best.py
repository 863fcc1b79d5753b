"""The best configuration of a sweep as a job file that `ropewalk run JOB -c` takes as it is."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.text import format_parameters
from ropewalk.jobs.orchestration.sweep.results import SweepResults, TrialResult, format_metric
from ropewalk.jobs.orchestration.sweep.space import merged
from ropewalk.jobs.registry import config_of, find_job

FIRST_WORDS = "# The best of "  # by which we know a file of ours again


def winner(results: SweepResults) -> TrialResult:
    """The best trial. Raises DataError where there is none yet."""
    if results.best is None:
        raise DataError(f"{results.run.id}: no trial has reported {results.metric} yet; `ropewalk show {results.run.id}`")
    return results.best


def configuration(results: SweepResults, parameters: Mapping[str, Any], **more: Any) -> JobConfig:
    """The base job's configuration with these parameters, as the job's own frozen model. Raises ConfigError."""
    return load_config(config_of(find_job(results.job)), merged(base_of(results), {**parameters, **more}))


def base_of(results: SweepResults) -> dict[str, Any]:
    """The configuration that all trials share."""
    return dict(results.run.record["config"].get("base") or {})


def job_file(results: SweepResults) -> str:
    """The job file: the best trial's base and parameters, and in comments their origin. Raises DataError, ConfigError."""
    best, sweep = winner(results), results.run.id
    configuration(results, best.parameters)  # what it would not take must not be written
    values = yaml.safe_dump(merged(base_of(results), best.parameters), sort_keys=False, allow_unicode=True)
    value = f"{results.metric} {format_metric(best.metric)}" if best.metric is not None else ""
    lines = [
        f"{FIRST_WORDS}{len(results.trials)} trials of the sweep {sweep}, on {time.strftime('%Y-%m-%d')}:",
        f"# trial {best.trial} ({best.run}), {value} at step {best.steps:,}.",
        f"# Found by the search: {format_parameters(best.parameters)}",
        *_changes(best),
        f"# Whether the win is real: ropewalk confirm {sweep}",
        f"# Run it: ropewalk run {results.job} -c THIS_FILE",
    ]
    return "\n".join(lines) + "\n\n" + values


def plain(results: SweepResults) -> dict[str, Any]:
    """What `best --json` prints: the trial, the job, and its configuration as the job file holds it."""
    best = winner(results)
    return {**best.plain(), "job": results.job, "config": merged(base_of(results), best.parameters)}


def _changes(best: TrialResult) -> list[str]:
    """Comments on what population based training has changed on the way: a file can hold only the last parameters."""
    lines = [
        f"#   from step {int(change['step']):,} on: went on from trial {change['from_trial']}"
        f" with {format_parameters(change.get('parameters') or {})}"
        for change in best.lineage
    ]
    return ["# The population changed them on the way; below are the last ones.", *lines] if lines else []


def write_job_file(results: SweepResults, path: Path) -> None:
    """Write the job file. Raises ConfigError rather than overwrite a file that `best` did not write."""
    text = job_file(results)
    if path.exists() and not path.read_text(errors="replace").startswith(FIRST_WORDS):
        raise ConfigError(f"{path} exists, and `ropewalk best` did not write it; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
