"""Trials of earlier sweeps, from which a model-based search may start."""

from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower
from ropewalk.jobs.orchestration.sweep.keys import SHARED, EarlierTrial, SweepKeys
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, TrialState, read_records
from ropewalk.jobs.orchestration.sweep.search.searches import final_value
from ropewalk.jobs.orchestration.sweep.search.space import encode
from ropewalk.jobs.runs.show.status import find_run

MISSING = object()


def earlier_trials(config: SweepKeys) -> list[EarlierTrial]:
    """Return the trials of the sweeps that `warm_start` names, as far as the space contains them. Raises ConfigError.

    A trial that was stopped early counts with the value that it would probably have reached.
    """
    trials: list[EarlierTrial] = []
    for reference in config.warm_start:
        sweep = find_run(reference)
        _check_alike(config, sweep)
        fitting = list(_fitting_trials(config, sweep))
        if not fitting:
            raise ConfigError(f"warm_start: {sweep.id} has no trial inside the space; remove it")
        trials += fitting
    return trials


def _check_alike(config: SweepKeys, sweep: RunDir) -> None:
    """Raise ConfigError if the trials of an earlier sweep cannot be compared with those of a new one."""
    if sweep.record.get("job") != "sweep":
        raise ConfigError(f"warm_start: {sweep.id} is not a sweep; `ropewalk ps --all` lists the runs")
    earlier = sweep.record["config"]
    for key in ("job", "metric", "mode"):
        if earlier.get(key) != getattr(config, key):
            raise ConfigError(f"warm_start: {sweep.id} has {key}={earlier.get(key)}, not {getattr(config, key)}; remove it")
    old, new = _flat(earlier.get("base") or {}), _flat(config.base)
    for key in sorted({*old, *new} - {*config.space, *earlier["space"]}):
        if key.partition(".")[0] not in SHARED and old.get(key) != new.get(key):
            raise ConfigError(
                f"warm_start: {sweep.id} has base.{key}={old.get(key)}, not {new.get(key)}, so that their metrics cannot be"
                " compared; remove it"
            )


def _fitting_trials(config: SweepKeys, sweep: RunDir) -> Iterator[EarlierTrial]:
    earlier = sweep.record["config"]
    base, new_base = _flat(earlier.get("base") or {}), _flat(config.base)
    others = [key for key in earlier["space"] if key not in config.space]  # which the new sweep does not vary
    records = [record for record in read_records(sweep) if record.state in (TrialState.SUCCEEDED, TrialState.STOPPED)]
    values_by_step = {record.trial: _curve(sweep, record, config.metric) for record in records}
    complete = [values_by_step[record.trial] for record in records if record.state is TrialState.SUCCEEDED]
    complete = [curve for curve in complete if curve]
    for record in records:
        values = {key: record.parameters.get(key, base.get(key, MISSING)) for key in config.space}
        is_inside = all(parameter.has(values[key]) for key, parameter in config.space.items())
        is_alike = all(record.parameters.get(key) == new_base.get(key) for key in others)
        if is_inside and is_alike and complete and (curve := values_by_step[record.trial]):
            encoded = {key: encode(value) for key, value in values.items()}
            yield EarlierTrial(values=encoded, metric=final_value(curve, complete))


def _curve(sweep: RunDir, record: TrialRecord, metric: str) -> dict[int, float]:
    """Return a trial's metric by step; empty if it has none, diverged, or took over the weights of another trial."""
    if len(record.runs) != 1:
        return {}
    trial = MetricFollower(RunDir(sweep.path.parent / record.runs[0]), metric)
    trial.refresh()
    return {} if trial.diverged else trial.points


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
