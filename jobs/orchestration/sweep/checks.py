"""What a sweep derives from its base job (steps, rungs, how many trials fit at once), and what can be wrong with it."""

import difflib
import fnmatch
import os
from pathlib import Path
from typing import Any, TypeVar

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import JobConfig, PathView, Resources
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.gpus import machine_devices
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys
from ropewalk.jobs.orchestration.sweep.space import merged, samples
from ropewalk.jobs.registry import config_of, find_job

GRACE_SHARE = 10  # the first decision comes after one of so many parts of a trial
OWN_JOBS_AT_ONCE = 8  # where a scheduler has the trials' jobs, and nobody said how many

K = TypeVar("K", bound=SweepKeys)


# --- at submission


def resolve(config: K) -> K:
    """The sweep with its base as the job itself understands it (paths absolute, numbers as numbers), and its number of trials.

    Loads the job's configuration with each extreme value of the space. Raises ConfigError.
    """
    if config.job == "sweep":
        raise ConfigError("job: a sweep of sweeps; name the job whose configuration is searched")
    kind, valid = config_of(find_job(config.job)), list[JobConfig]()
    for parameters in samples(config.space):
        try:
            valid.append(load_config(kind, merged(config.base, parameters)))
        except ConfigError as error:
            with_values = ", ".join(f"{key}={value}" for key, value in parameters.items())
            raise ConfigError(f"base and space: {error} (with {with_values})") from None
    base = _as_understood(config.base, valid[0].model_dump(mode="json"))
    return config.model_copy(update={"base": base, "trials": config.num_trials})


def _as_understood(given: Any, understood: Any) -> Any:
    """The keys that the user gave, with the values that the job's configuration made of them."""
    if not isinstance(given, dict) or not isinstance(understood, dict):
        return understood
    return {key: _as_understood(value, understood[key]) if key in understood else value for key, value in given.items()}


def check_submission(config: SweepKeys, here: PathView = Path) -> None:
    """Check what only the submitting machine can check. Raises ConfigError, DataError."""
    reports = find_job(config.job).reports
    if reports and not any(fnmatch.fnmatch(config.metric, pattern) for pattern in reports):
        near = difflib.get_close_matches(config.metric, reports, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it reports {', '.join(reports)}"
        raise ConfigError(f"metric: {config.job} never reports {config.metric!r}{hint}")
    sample = sample_config(config)
    check_limits(config, sample)
    sample.preflight(load_backend(config.cluster).path_here if config.cluster is not None else here)


def refuse_unreachable(own: Profile, trials: Profile) -> None:
    """Raise ConfigError if the driver's pod could not reach the trials' cluster: its service account is of its own cluster."""
    if own.backend != "k8s" or trials.backend != "k8s":
        return
    other = [key for key in ("kubeconfig", "context") if own.options.get(key) != trials.options.get(key)]
    if other:
        raise ConfigError(
            f"cluster={trials.name}: its {other[0]} is another than that of {own.name}, whose pods do not know it;"
            f" drive the sweep from here: --on local"
        )


def sample_config(config: SweepKeys) -> JobConfig:
    """The configuration of a possible trial: for what all trials have in common."""
    return load_config(config_of(find_job(config.job)), merged(config.base, samples(config.space)[0]))


# --- numbers


def steps_of(sample: JobConfig) -> int | None:
    """The steps of a complete trial, where the job counts steps."""
    steps = getattr(sample, "steps", None)
    return int(steps) if steps else None


def highest_rung(config: SweepKeys, sample: JobConfig) -> int:
    """The steps after which a trial is complete, for schedulers with rungs. Raises ConfigError."""
    highest = config.asha.max_steps or steps_of(sample)
    if highest is None:
        raise ConfigError(f"asha.max_steps: required, since {config.job} has no `steps`; the step of its last metric")
    return highest


def decision_steps(config: SweepKeys, sample: JobConfig) -> int | None:
    """The interval in steps at which the scheduler decides on a trial; None: only its end is reported. Raises ConfigError."""
    steps = steps_of(sample)
    tenth = max(1, steps // GRACE_SHARE) if steps else None
    if config.scheduler == "asha":
        return config.asha.grace_steps or max(1, highest_rung(config, sample) // GRACE_SHARE)
    if config.scheduler == "median":
        return config.median.grace_steps or _required(tenth, "median.grace_steps", config)
    if config.scheduler == "pbt":
        return config.pbt.interval_steps or _required(tenth, "pbt.interval_steps", config)
    return None


def _required(value: int | None, key: str, config: SweepKeys) -> int:
    if value is None:
        raise ConfigError(f"{key}: required, since {config.job} has no `steps` to derive it from")
    return value


def trial_defaults(config: SweepKeys, sample: JobConfig, sweep_id: str) -> dict[str, Any]:
    """Dotted keys that every trial has besides base and parameters: the W&B group, and checkpoints for a population."""
    found: dict[str, Any] = {"wandb.group": sweep_id} if sample.wandb.group is None else {}
    if config.scheduler == "pbt" and "every_steps" not in (config.base.get("checkpoint") or {}):
        found["checkpoint.every_steps"] = decision_steps(config, sample)
    return found


def check_limits(config: SweepKeys, sample: JobConfig) -> None:
    """Check that steps, rungs and checkpoints fit each other. Raises ConfigError."""
    interval, steps = decision_steps(config, sample), steps_of(sample)
    if interval is not None and steps is not None and interval >= steps:
        raise ConfigError(f"the scheduler would first decide after {interval} steps, and a trial has {steps}; set it lower")
    every = getattr(getattr(sample, "validation", None), "every_steps", None)
    if interval and steps and every and config.metric.startswith("validation/") and every >= steps:
        raise ConfigError(
            f"{config.metric} is reported every {every} steps (base.validation.every_steps), and a trial has {steps}: "
            f"scheduler={config.scheduler} could never decide; set base.validation.every_steps={interval}"
        )
    if config.scheduler == "pbt":
        if not hasattr(sample, "start_from"):
            raise ConfigError(f"scheduler=pbt needs a job that can start from another run's checkpoint; {config.job} cannot")
        own = (config.base.get("checkpoint") or {}).get("every_steps")
        if own is not None and interval is not None and interval % own:
            raise ConfigError(
                f"pbt.interval_steps={interval} must be a multiple of base.checkpoint.every_steps={own}: "
                "trials go on from the checkpoint of the step at which it was decided"
            )


def concurrent_trials(config: SweepKeys, resources: Resources, backend: str) -> int:
    """How many trials may run at the same time."""
    wanted = config.max_concurrent or config.num_trials
    if config.max_concurrent or config.scheduler == "pbt":  # a population lives together
        return min(wanted, config.num_trials)
    nodes = resources.nodes.most
    if config.allocation:
        own = config.resources
        share = (own.cpus or 1) // (resources.cpus or 1) if own.cpus else 1
        if own.gpus and resources.gpus:
            share = own.gpus // resources.gpus
        return max(1, min(wanted, own.nodes.least * max(1, share) // nodes))
    if backend == "local":
        fits = (os.cpu_count() or 1) // (nodes * (resources.cpus or resources.local_world_size))
        if resources.gpus:
            fits = min(fits, len(machine_devices()) // (nodes * resources.gpus))
        return max(1, min(wanted, fits))
    return min(wanted, OWN_JOBS_AT_ONCE)
