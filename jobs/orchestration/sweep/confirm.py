"""Run the best configuration of a sweep and another one again, once with each seed that the sweep has not used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend, load_profile
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked, read_json, write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.best import configuration, winner
from ropewalk.jobs.orchestration.sweep.checks import concurrent_trials
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower
from ropewalk.jobs.orchestration.sweep.results import SweepResults
from ropewalk.jobs.runs.show.status import GONE, final_outcome, is_final, states
from ropewalk.jobs.runs.submit.submit import resume, write_down

RECORD = "confirm.json"  # in the sweep's directory: parameters, seed, run; written before anything is submitted
LOCK = ".confirm.lock"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that is run again."""

    word: str  # best, runner-up or base
    trial: int | None  # of the sweep; None: the base as it is
    parameters: Mapping[str, Any]
    in_sweep: float | None  # its metric there
    runs: dict[int, RunDir] = field(default_factory=dict)  # by seed


def candidates(results: SweepResults, against: str) -> list[Candidate]:
    """The best trial, and what it is compared with. Raises ConfigError, DataError."""
    if not is_final(results.run):
        remedy = f"`ropewalk wait {results.run.id}` returns when it is, `ropewalk cancel {results.run.id}` ends it"
        raise ConfigError(f"{results.run.id} is not over, and another trial may still win; {remedy}")
    best, others = winner(results), results.eligible[1:]
    found = [Candidate(word="best", trial=best.trial, parameters=best.parameters, in_sweep=best.metric)]
    if against == "runner-up":
        if not others:
            raise ConfigError(f"{results.run.id} has one trial with a value and no runner-up; use --against base")
        second = others[0]
        return [*found, Candidate(word=against, trial=second.trial, parameters=second.parameters, in_sweep=second.metric)]
    try:
        configuration(results, {})
    except ConfigError as error:
        raise ConfigError(
            f"the base of {results.run.id} is no configuration by itself: {error}; use --against runner-up"
        ) from None
    return [*found, Candidate(word="base", trial=None, parameters={}, in_sweep=None)]


def seeds_of(results: SweepResults, number: int) -> list[int]:
    """Seeds above those that the sweep has used."""
    used = [int(configuration(results, trial.parameters).seed) for trial in results.eligible]
    return [max(used) + 1 + k for k in range(number)]


def ensure_runs(
    results: SweepResults, found: Sequence[Candidate], seeds: Sequence[int], cluster: str, command: Sequence[str]
) -> None:
    """Give each candidate a run per seed, and submit or resume those that are neither running nor over. What another call began
    is taken up.

    Raises RopewalkError.
    """
    with locked(results.run.path / LOCK):
        _write_down(results, found, seeds, cluster, command)
        _start(results, [candidate.runs[seed] for candidate in found for seed in seeds])


def _write_down(
    results: SweepResults, found: Sequence[Candidate], seeds: Sequence[int], cluster: str, command: Sequence[str]
) -> None:
    """Give each candidate a run per seed, written down and perhaps not submitted yet."""
    sweep, wanted = results.run, [(candidate, seed) for candidate in found for seed in seeds]
    record = list((read_json(sweep.path / RECORD) or {"runs": []})["runs"])
    known = {(_key(line["parameters"]), line["seed"]): _run_of(sweep, line["run"]) for line in record}
    missing = [(candidate, seed) for candidate, seed in wanted if (_key(candidate.parameters), seed) not in known]
    if missing:
        configs = [_config(results, candidate, seed) for candidate, seed in missing]
        runs = write_down(load_backend(cluster), results.job, configs, cluster, command)
        for (candidate, seed), run in zip(missing, runs, strict=True):
            known[_key(candidate.parameters), seed] = run
            place = run.id if run.path.parent == sweep.path.parent else str(run.path)
            record.append({"parameters": dict(candidate.parameters), "seed": seed, "run": place})
        write_json(sweep.path / RECORD, {"runs": record})
    for candidate, seed in wanted:
        candidate.runs[seed] = known[_key(candidate.parameters), seed]


def _start(results: SweepResults, runs: Sequence[RunDir]) -> None:
    """Submit the runs that never were, and resume those whose process is gone."""
    new = [run for run in runs if not run.attempts()]
    for cluster in dict.fromkeys(str(run.record["cluster"]) for run in new):
        mine = [run for run in new if run.record["cluster"] == cluster]
        backend, resources = load_backend(cluster), mine[0].resources()
        at_once = concurrent_trials(_sweep_config(results), resources, load_profile(cluster).backend)
        try:
            if len(mine) == 1:
                backend.submit(mine[0], resources)
            else:
                backend.submit_many(mine, resources, (), at_once)
        except RopewalkError as error:
            for run in mine:
                run.event("submit_failed", error=str(error))
            raise
    old = [run for run in runs if run not in new and not is_final(run)]
    for run_id, state in states(old).items():
        if state.state is RunState.UNKNOWN or (state.word in GONE and not state.state.final):
            resume(next(run for run in old if run.id == run_id))


def values_of(results: SweepResults, candidate: Candidate) -> dict[int, float]:
    """The last value of the sweep's metric, by seed, of the runs that succeeded."""
    found: dict[int, float] = {}
    for seed, run in candidate.runs.items():
        outcome, series = final_outcome(run), MetricFollower(run, results.metric)
        series.refresh()
        if outcome is not None and outcome.state is RunState.SUCCEEDED and series.points and not series.diverged:
            found[seed] = series.points[max(series.points)]
    return found


def _key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True, default=str)


def _run_of(sweep: RunDir, place: str) -> RunDir:
    """A run of the record: named by its id if it lies beside the sweep, else by its path, on a cluster with its own root."""
    return RunDir(Path(place) if "/" in place else sweep.path.parent / place)


def _config(results: SweepResults, candidate: Candidate, seed: int) -> JobConfig:
    name = f"{results.run.record['config'].get('name') or 'sweep'}-{candidate.word}-seed-{seed}"
    own = configuration(results, candidate.parameters)
    wandb = {"wandb.group": own.wandb.group or results.run.id, "wandb.tags": [*own.wandb.tags, "confirm"]}
    return configuration(results, {**candidate.parameters, "seed": seed, "name": name, **wandb})


def _sweep_config(results: SweepResults) -> SweepConfig:
    return SweepConfig.model_validate(results.run.record["config"])
