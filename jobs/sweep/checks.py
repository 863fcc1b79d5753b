"""What can be wrong with a sweep, found before anything starts."""

import difflib
import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.backends.base import Profile
from cluster.backends.profiles import load_backend
from cluster.config import JobConfig, PathView, load_config
from cluster.errors import ConfigError
from jobs.registry import config_of, find_job
from jobs.sweep.space import merged, samples, wrong_conditions

if TYPE_CHECKING:
    from jobs.sweep.config import SweepConfig

BOHB_PACKAGES = ("ConfigSpace", "hpbandster")
NOT_SEARCHED = ("name", "resources", "wandb", "retries")  # of a job's keys: what no trial may have for itself


def wrong_combination(config: "SweepConfig") -> str:
    """Keys that do not go together, in words; nothing if all is well."""
    for key in config.space:
        if key.partition(".")[0] in NOT_SEARCHED:
            return f"space.{key}: all trials share this key; set it in base"
    if found := wrong_conditions(config.space):
        return f"space.{found[0]}"
    ranges = [key for key, parameter in config.space.items() if parameter.values is None]
    if config.search == "grid" and ranges:
        return f"search=grid needs finitely many values, and space.{ranges[0]} is a range; give it a grid or a choice"
    if config.scheduler == "pbt" and config.search != "random":
        return f"scheduler=pbt changes parameters itself and goes with search=random only, not {config.search}"
    if config.scheduler == "pbt" and any(parameter.when for parameter in config.space.values()):
        return "scheduler=pbt perturbs every key at any time; conditions (when) do not go with it"
    if config.search == "bohb" and config.scheduler in {"median", "pbt"}:
        return f"search=bohb brings its own scheduler (HyperBand), and scheduler={config.scheduler} cannot be in its place"
    if config.allocation and config.cluster is not None:
        return "allocation=true runs all trials on the sweep's own nodes; leave cluster out, or allocation"
    if not config.allocation and config.resources.nodes.most > 1:
        return "resources are the driver's, which takes one node; trials have base.resources (or set allocation=true)"
    return ""


def checked_base(config: "SweepConfig") -> dict[str, Any]:
    """The base as the job itself understands it: paths absolute, numbers as numbers. Raises ConfigError."""
    kind = config_of(find_job(config.job))
    if config.job == "sweep":
        raise ConfigError("job: a sweep of sweeps; name the job whose configuration is searched")
    valid: list[tuple[dict[str, Any], JobConfig]] = []
    for parameters in samples(config.space):
        try:
            valid.append((parameters, load_config(kind, merged(config.base, parameters))))
        except ConfigError as error:
            raise ConfigError(f"base and space: {error} (with {_told(parameters)})") from None
    base: dict[str, Any] = _as_understood(config.base, valid[0][1].model_dump(mode="json"))
    return base


def refuse_unreachable(own: Profile, trials: Profile) -> None:
    """A driver in a pod knows its own cluster, by the pod's service account, and no other. Raises ConfigError."""
    if own.backend != "k8s" or trials.backend != "k8s":
        return
    other = [key for key in ("kubeconfig", "context") if own.options.get(key) != trials.options.get(key)]
    if other:
        raise ConfigError(
            f"cluster={trials.name}: its {other[0]} is another than that of {own.name}, whose pods do not know it;"
            f" drive the sweep from here: --on local"
        )


def _told(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in parameters.items())


def _as_understood(given: Any, understood: Any) -> Any:
    """The keys that were given, with the values that became of them."""
    if not isinstance(given, dict) or not isinstance(understood, dict):
        return understood
    return {key: _as_understood(value, understood[key]) if key in understood else value for key, value in given.items()}


def sample_config(config: "SweepConfig") -> JobConfig:
    """The configuration of a trial that might be: for what all trials have in common."""
    return load_config(config_of(find_job(config.job)), merged(config.base, samples(config.space)[0]))


def preflight(config: "SweepConfig", here: PathView = Path) -> None:
    """What only the submitting machine can check. Raises ConfigError, DataError."""
    missing = [name for name in BOHB_PACKAGES if find_spec(name) is None]
    if config.search == "bohb" and missing:
        raise ConfigError(f"search=bohb needs {' and '.join(missing)}; `pip install ropewalk[bohb]`")
    reports = find_job(config.job).reports
    if reports and not any(fnmatch.fnmatch(config.metric, pattern) for pattern in reports):
        near = difflib.get_close_matches(config.metric, reports, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it reports {', '.join(reports)}"
        raise ConfigError(f"metric: {config.job} never reports {config.metric!r}{hint}")
    from jobs.sweep.limits import check_limits

    sample = sample_config(config)
    check_limits(config, sample)
    sample.preflight(load_backend(config.cluster).path_here if config.cluster is not None else here)
