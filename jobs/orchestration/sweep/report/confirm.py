"""Run a sweep's best configuration and a second one again with new seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend, load_profile
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked, read_json, write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.checks import concurrent_trials
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.report.best import configuration, winner
from ropewalk.jobs.orchestration.sweep.report.repeats import RECORD, final_metric, key_of, read_repeats
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults
from ropewalk.jobs.runs.show.status import GONE, is_final, states
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import create_runs

LOCK = ".confirm.lock"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration to run again."""

    role: str  # best, runner-up or base
    trial: int | None  # number in the sweep; None: the base configuration
    parameters: Mapping[str, Any]
    in_sweep: float | None  # its metric in the sweep
    runs: dict[int, RunDir] = field(default_factory=dict)  # by seed


def candidates(results: SweepResults, against: str) -> list[Candidate]:
    """Return the best trial and the configuration to compare it with. Raises ConfigError, DataError."""
    if not is_final(results.run):
        remedy = f"`ropewalk wait {results.run.id}` waits for its end, `ropewalk cancel {results.run.id}` ends it"
        raise ConfigError(f"{results.run.id} has not ended, and another trial may still win; {remedy}")
    best, others = winner(results), results.eligible[1:]
    first = [Candidate(role="best", trial=best.trial, parameters=best.parameters, in_sweep=best.metric)]
    if against == "runner-up":
        if not others:
            raise ConfigError(f"{results.run.id} has only one trial with a value, so no runner-up; use --against base")
        second = others[0]
        return [*first, Candidate(role=against, trial=second.trial, parameters=second.parameters, in_sweep=second.metric)]
    try:
        configuration(results, {})
    except ConfigError as error:
        raise ConfigError(
            f"the base of {results.run.id} is not a complete configuration: {error}; use --against runner-up"
        ) from None
    return [*first, Candidate(role="base", trial=None, parameters={}, in_sweep=None)]


def seeds_of(results: SweepResults, number: int) -> list[int]:
    """Return seeds above those used by the sweep."""
    used = [int(configuration(results, trial.parameters).seed) for trial in results.eligible]
    return [max(used) + 1 + k for k in range(number)]


def ensure_runs(
    results: SweepResults, compared: Sequence[Candidate], seeds: Sequence[int], cluster: str, command: Sequence[str]
) -> None:
    """Ensure that each candidate has a run per seed that runs or has ended: create, submit or resume it. Raises RopewalkError."""
    with locked(results.run.path / LOCK):
        _create_runs(results, compared, seeds, cluster, command)
        _start(results, [candidate.runs[seed] for candidate in compared for seed in seeds])


def _create_runs(
    results: SweepResults, compared: Sequence[Candidate], seeds: Sequence[int], cluster: str, command: Sequence[str]
) -> None:
    """Create the missing runs of each candidate, without submitting them."""
    sweep, wanted = results.run, [(candidate, seed) for candidate in compared for seed in seeds]
    record = list((read_json(sweep.path / RECORD) or {"runs": []})["runs"])
    runs_by_key = read_repeats(sweep)
    missing = [(candidate, seed) for candidate, seed in wanted if (key_of(candidate.parameters), seed) not in runs_by_key]
    if missing:
        configs = [_config(results, candidate, seed) for candidate, seed in missing]
        new_runs = create_runs(load_backend(cluster), results.job, configs, cluster, command)
        for (candidate, seed), run in zip(missing, new_runs, strict=True):
            runs_by_key[key_of(candidate.parameters), seed] = run
            reference = run.id if run.path.parent == sweep.path.parent else str(run.path)
            record.append({"parameters": dict(candidate.parameters), "seed": seed, "run": reference})
        write_json(sweep.path / RECORD, {"runs": record})
    for candidate, seed in wanted:
        candidate.runs[seed] = runs_by_key[key_of(candidate.parameters), seed]


def _start(results: SweepResults, runs: Sequence[RunDir]) -> None:
    """Submit runs that were never submitted, and resume those whose process is gone."""
    new = [run for run in runs if not run.attempts()]
    for cluster in dict.fromkeys(str(run.record["cluster"]) for run in new):
        group = [run for run in new if run.record["cluster"] == cluster]
        backend, resources = load_backend(cluster), group[0].resources()
        config = SweepConfig.model_validate(results.run.record["config"])
        at_once = concurrent_trials(config, resources, load_profile(cluster).backend)
        try:
            if len(group) == 1:
                backend.submit(group[0], resources)
            else:
                backend.submit_many(group, resources, (), at_once)
        except RopewalkError as error:
            for run in group:
                run.event("submit_failed", error=str(error))
            raise
    old = [run for run in runs if run not in new and not is_final(run)]
    for run_id, state in states(old).items():
        if state.state is RunState.UNKNOWN or (state.word in GONE and not state.state.final):
            resume(next(run for run in old if run.id == run_id))


def values_of(results: SweepResults, candidate: Candidate) -> dict[int, float]:
    """Return the last value of the sweep's metric by seed, for runs that succeeded."""
    values = {seed: final_metric(run, results.metric) for seed, run in candidate.runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _config(results: SweepResults, candidate: Candidate, seed: int) -> JobConfig:
    name = f"{results.run.record['config'].get('name') or 'sweep'}-{candidate.role}-seed-{seed}"
    config = configuration(results, candidate.parameters)
    wandb = {"wandb.group": config.wandb.group or results.run.id, "wandb.tags": [*config.wandb.tags, "confirm"]}
    return configuration(results, {**candidate.parameters, "seed": seed, "name": name, **wandb})
