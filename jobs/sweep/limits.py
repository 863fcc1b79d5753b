"""Numbers that a sweep derives from its base job: steps, rungs, and how many trials fit at once."""

import os
from typing import TYPE_CHECKING, Any

from cluster.config import JobConfig, Resources
from cluster.errors import ConfigError
from cluster.gpus import machine_devices

if TYPE_CHECKING:
    from jobs.sweep.config import SweepConfig

GRACE_SHARE = 10  # the first decision comes after one of so many parts of a trial
OWN_JOBS_AT_ONCE = 8  # where a scheduler has the trials' jobs, and nobody said how many


def steps_of(sample: JobConfig) -> int | None:
    """The steps of a whole trial, where the job counts steps."""
    steps = getattr(sample, "steps", None)
    return int(steps) if steps else None


def highest_rung(config: "SweepConfig", sample: JobConfig) -> int:
    """The steps after which a trial is complete, for schedulers with rungs. Raises ConfigError."""
    highest = config.asha.max_steps or steps_of(sample)
    if highest is None:
        raise ConfigError(f"asha.max_steps: required, since {config.job} has no `steps`; the step of its last metric")
    return highest


def decision_steps(config: "SweepConfig", sample: JobConfig) -> int | None:
    """At each multiple of so many steps the scheduler wants to hear of a trial; None: only of its end. Raises ConfigError."""
    steps = steps_of(sample)
    tenth = max(1, steps // GRACE_SHARE) if steps else None
    if config.search == "bohb" or config.scheduler == "asha":
        return config.asha.grace_steps or max(1, highest_rung(config, sample) // GRACE_SHARE)
    if config.scheduler == "median":
        return config.median.grace_steps or _required(tenth, "median.grace_steps", config)
    if config.scheduler == "pbt":
        return config.pbt.interval_steps or _required(tenth, "pbt.interval_steps", config)
    return None


def _required(value: int | None, key: str, config: "SweepConfig") -> int:
    if value is None:
        raise ConfigError(f"{key}: required, since {config.job} has no `steps` to derive it from")
    return value


def trial_defaults(config: "SweepConfig", sample: JobConfig) -> dict[str, Any]:
    """What a trial's configuration needs besides base and parameters: checkpoints where a population exchanges them."""
    interval = decision_steps(config, sample)
    if config.scheduler != "pbt" or "every_steps" in (config.base.get("checkpoint") or {}):
        return {}
    return {"checkpoint.every_steps": interval}


def check_limits(config: "SweepConfig", sample: JobConfig) -> None:
    """Steps, rungs and checkpoints fit each other. Raises ConfigError."""
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


def fitting(config: "SweepConfig", resources: Resources, backend: str) -> int:
    """How many trials may run at a time."""
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
