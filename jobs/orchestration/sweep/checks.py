"""Validation of a sweep, and values derived from its base job: steps, rungs, number of concurrent trials."""

import copy
import difflib
import fnmatch
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import JobConfig, Resources
from ropewalk.cluster.config_reader import apply_override, changed_keys, load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.gpus import machine_devices
from ropewalk.cluster.input_paths import PathView, Resolve
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys
from ropewalk.jobs.orchestration.sweep.search.space import merge_parameters, samples
from ropewalk.jobs.registry import config_of, find_job

GRACE_SHARE = 10  # the first decision comes after 1/10 of a trial
DEFAULT_CONCURRENT_JOBS = 8  # trials in a scheduler's queue at a time, unless configured

K = TypeVar("K", bound=SweepKeys)


# --- at submission


def resolve(config: K) -> K:
    """Return the sweep with its base parsed by the job (absolute paths, numbers as numbers) and its number of trials.

    Validates the job's configuration with each extreme value of the space. Raises ConfigError.
    """
    if config.job == "sweep":
        raise ConfigError("job: a sweep cannot search a sweep; name another job")
    kind, valid = config_of(find_job(config.job)), list[JobConfig]()
    for parameters in samples(config.space):
        try:
            valid.append(load_config(kind, merge_parameters(config.base, parameters)))
            valid[-1].check_keys()
        except ConfigError as error:
            with_values = ", ".join(f"{key}={value}" for key, value in parameters.items())
            raise ConfigError(f"base and space: {error} (with {with_values})") from None
    base = _parsed_values(config.base, valid[0].model_dump(mode="json"))
    return config.model_copy(update={"base": base, "trials": config.num_trials})


def _parsed_values(values: Any, parsed: Any) -> Any:
    """Return the keys of `values` with their values after parsing."""
    if not isinstance(values, dict) or not isinstance(parsed, dict):
        return parsed
    return {key: _parsed_values(value, parsed[key]) if key in parsed else value for key, value in values.items()}


def map_trial_inputs(config: K, resolve: Resolve) -> K:
    """Return the sweep with the inputs replaced that its base and the choices of its space name. Raises ConfigError."""

    def changed(parameters: Mapping[str, Any]) -> dict[str, Any]:
        trial = load_config(config_of(find_job(config.job)), merge_parameters(config.base, parameters))
        return changed_keys(trial, trial.with_inputs(lambda key, value, need: resolve(f"base.{key}", value, need)))

    base, space, first = copy.deepcopy(config.base), dict(config.space), samples(config.space)[0]
    for key, value in changed(first).items():
        if key not in space:
            apply_override(base, f"{key}={json.dumps(value)}")
    for key, parameter in space.items():
        if parameter.values and any(isinstance(value, str) for value in parameter.values):
            values = [changed({**first, key: value}).get(key, value) for value in parameter.values]
            space[key] = parameter.model_copy(update={parameter.kind: values})
    return config.model_copy(update={"base": base, "space": space})


def check_submission(config: SweepKeys, here: PathView = Path) -> None:
    """Run the checks that need the submitting machine. Raises ConfigError, DataError."""
    reports = find_job(config.job).reports
    if reports and not any(fnmatch.fnmatch(config.metric, pattern) for pattern in reports):
        near = difflib.get_close_matches(config.metric, reports, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it reports {', '.join(reports)}"
        raise ConfigError(f"metric: {config.job} never reports {config.metric!r}{hint}")
    sample = sample_config(config)
    check_limits(config, sample)
    sample.preflight(load_backend(config.cluster).path_here if config.cluster is not None else here)


def refuse_unreachable(driver: Profile, trials: Profile) -> None:
    """Raise ConfigError if the driver's pod cannot reach the trials' cluster, as its service account is valid only in its own."""
    if driver.backend != "k8s" or trials.backend != "k8s":
        return
    different = [key for key in ("kubeconfig", "context") if driver.options.get(key) != trials.options.get(key)]
    if different:
        raise ConfigError(
            f"cluster={trials.name}: its {different[0]} differs from that of {driver.name}, whose pods cannot reach it;"
            f" run the sweep's driver here: --on local"
        )


def sample_config(config: SweepKeys) -> JobConfig:
    """Return the configuration of one possible trial, for values that all trials share."""
    return load_config(config_of(find_job(config.job)), merge_parameters(config.base, samples(config.space)[0]))


# --- numbers


def steps_of(sample: JobConfig) -> int | None:
    """Return the steps of a complete trial, or None if the job does not count steps."""
    steps = getattr(sample, "steps", None)
    return int(steps) if steps else None


def highest_rung(config: SweepKeys, sample: JobConfig) -> int:
    """Return the steps of a complete trial for schedulers with rungs. Raises ConfigError."""
    highest = config.asha.max_steps or steps_of(sample)
    if highest is None:
        raise ConfigError(f"asha.max_steps: required because {config.job} has no `steps`; set it to the step of its last metric")
    return highest


def decision_steps(config: SweepKeys, sample: JobConfig) -> int | None:
    """Return the scheduler's decision interval in steps; None if only final values are reported. Raises ConfigError."""
    steps = steps_of(sample)
    tenth = max(1, steps // GRACE_SHARE) if steps else None
    if config.scheduler == "asha":
        return config.asha.grace_steps or max(1, highest_rung(config, sample) // GRACE_SHARE)
    if config.scheduler == "median":
        return config.median.grace_steps or _require(tenth, "median.grace_steps", config)
    if config.scheduler == "pbt":
        return config.pbt.interval_steps or _require(tenth, "pbt.interval_steps", config)
    return None


def _require(value: int | None, key: str, config: SweepKeys) -> int:
    if value is None:
        raise ConfigError(f"{key}: required because {config.job} has no `steps` to derive it from")
    return value


def trial_defaults(config: SweepKeys, sample: JobConfig, sweep_id: str) -> dict[str, Any]:
    """Return dotted keys that every trial gets: the W&B group and, for a population, the checkpoint interval."""
    defaults: dict[str, Any] = {"wandb.group": sweep_id} if sample.wandb.group is None else {}
    if config.scheduler == "pbt" and "every_steps" not in (config.base.get("checkpoint") or {}):
        defaults["checkpoint.every_steps"] = decision_steps(config, sample)
    return defaults


def check_limits(config: SweepKeys, sample: JobConfig) -> None:
    """Check that steps, rungs and checkpoint intervals are compatible. Raises ConfigError."""
    interval, steps = decision_steps(config, sample), steps_of(sample)
    if interval is not None and steps is not None and interval >= steps:
        raise ConfigError(
            f"the scheduler's first decision is after {interval} steps, but a trial has only {steps}; set a smaller interval"
        )
    every = getattr(getattr(sample, "validation", None), "every_steps", None)
    if interval and steps and every and config.metric.startswith("validation/") and every >= steps:
        raise ConfigError(
            f"{config.metric} is reported every {every} steps (base.validation.every_steps), but a trial has {steps}: "
            f"scheduler={config.scheduler} could never decide; set base.validation.every_steps={interval}"
        )
    if config.scheduler == "pbt":
        if not hasattr(sample, "start_from"):
            raise ConfigError(f"scheduler=pbt needs a job that can start from another run's checkpoint; {config.job} cannot")
        checkpoint_steps = (config.base.get("checkpoint") or {}).get("every_steps")
        if checkpoint_steps is not None and interval is not None and interval % checkpoint_steps:
            raise ConfigError(
                f"pbt.interval_steps={interval} must be a multiple of base.checkpoint.every_steps={checkpoint_steps}: "
                "trials continue from the checkpoint of the step of the decision"
            )


def concurrent_trials(config: SweepKeys, resources: Resources, backend: str) -> int:
    """Return the number of trials that may run at the same time."""
    wanted = config.max_concurrent or config.num_trials
    if config.max_concurrent or config.scheduler == "pbt":  # all members of a population run together
        return min(wanted, config.num_trials)
    nodes = resources.nodes.most
    if config.allocation:
        sweep_resources = config.resources
        trials_per_node = (sweep_resources.cpus or 1) // (resources.cpus or 1) if sweep_resources.cpus else 1
        if sweep_resources.gpus and resources.gpus:
            trials_per_node = sweep_resources.gpus // resources.gpus
        return max(1, min(wanted, sweep_resources.nodes.least * max(1, trials_per_node) // nodes))
    if backend == "local":
        fits = (os.cpu_count() or 1) // (nodes * (resources.cpus or resources.local_world_size))
        if resources.gpus:
            fits = min(fits, len(machine_devices()) // (nodes * resources.gpus))
        return max(1, min(wanted, fits))
    return min(wanted, DEFAULT_CONCURRENT_JOBS)
