"""Write a sweep's best configuration as a job file for `ropewalk run JOB -c`."""

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
from ropewalk.jobs.orchestration.sweep.report.outlook import expected_best
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult, format_metric
from ropewalk.jobs.orchestration.sweep.search.space import merge_parameters
from ropewalk.jobs.registry import config_of, find_job

HEADER = "# The best of "  # marks files written by `best`


def winner(results: SweepResults) -> TrialResult:
    """Return the best trial. Raises DataError if there is none yet."""
    if results.best is None:
        raise DataError(f"{results.run.id}: no trial has reported {results.metric} yet; `ropewalk show {results.run.id}`")
    return results.best


def configuration(results: SweepResults, parameters: Mapping[str, Any], **more: Any) -> JobConfig:
    """Return the base configuration with these parameters, validated by the job. Raises ConfigError."""
    return load_config(config_of(find_job(results.job)), merge_parameters(base_of(results), {**parameters, **more}))


def base_of(results: SweepResults) -> dict[str, Any]:
    """Return the configuration shared by all trials."""
    return dict(results.run.record["config"].get("base") or {})


def job_file(results: SweepResults) -> str:
    """Return the job file of the best trial, with its origin in comments. Raises DataError, ConfigError."""
    best, sweep = winner(results), results.run.id
    configuration(results, best.parameters)  # refuse to write an invalid file
    values = yaml.safe_dump(merge_parameters(base_of(results), best.parameters), sort_keys=False, allow_unicode=True)
    value = f"{results.metric} {format_metric(best.metric)}" if best.metric is not None else ""
    lines = [
        f"{HEADER}{len(results.trials)} trials of the sweep {sweep}, on {time.strftime('%Y-%m-%d')}:",
        f"# trial {best.trial} ({best.run}), {value} at step {best.steps:,}.",
        *_expectation(results),
        f"# Parameters from the search: {format_parameters(best.parameters)}",
        *_changes(best),
        f"# Test the win with new seeds: ropewalk confirm {sweep}",
        "# Run it: ropewalk run -c THIS_FILE",
    ]
    return "\n".join([*lines, "", f"run: {results.job}", values])


def plain(results: SweepResults) -> dict[str, Any]:
    """Return the output of `best --json`: the trial, its metric to expect with new seeds, the job, and the configuration."""
    best, expected = winner(results), expected_best(results)
    expectation = {
        "expected": expected.metric if expected else None,
        "expected_error": expected.error if expected else None,
        "expected_seeds": expected.seeds if expected else 0,
    }
    config = merge_parameters(base_of(results), best.parameters)
    return {**best.plain(), **expectation, "job": results.job, "config": config}


def _expectation(results: SweepResults) -> list[str]:
    """Return a comment with the metric to expect with new seeds, if the trials tell."""
    expected = expected_best(results)
    if expected is None:
        return []
    reason = "" if expected.seeds else f": the best of {len(results.eligible)} noisy values is too good"
    return [f"# With new seeds expect {expected.text}{reason}."]


def _changes(best: TrialResult) -> list[str]:
    """Return comments on changes by population-based training; the file itself can only hold the last parameters."""
    lines = [
        f"#   from step {int(change['step']):,} on: continued from trial {change['from_trial']}"
        f" with {format_parameters(change.get('parameters') or {})}"
        for change in best.lineage
    ]
    return ["# Population-based training changed them during the trial; below are the last ones.", *lines] if lines else []


def write_job_file(results: SweepResults, path: Path) -> None:
    """Write the job file. Raises ConfigError for an existing file that `best` did not write."""
    text = job_file(results)
    if path.exists() and not path.read_text(errors="replace").startswith(HEADER):
        raise ConfigError(f"{path} exists and was not written by `ropewalk best`; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
