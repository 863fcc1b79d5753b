"""Cluster profiles (clusters.yaml), and loading of the backend that `--on CLUSTER` names."""

import difflib
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend, Profile
from ropewalk.cluster.backends.trust import require_trust
from ropewalk.cluster.config_reader import read_yaml
from ropewalk.cluster.errors import ConfigError, UnknownBackendError
from ropewalk.cluster.run.directory import RunDir

PROFILES_VARIABLE = "ROPEWALK_CLUSTERS"
LOCAL_FILE = Path("clusters.yaml")  # of the current directory, and possibly of a checkout from elsewhere
GROUP = "ropewalk.backends"
# built-in backends; entry points would require a scan of every installed package (40 ms)
BUILT_IN = {
    "local": "ropewalk.cluster.backends.local.backend:LocalBackend",
    "slurm": "ropewalk.slurm.backend:SlurmBackend",
    "k8s": "ropewalk.k8s.backend:K8sBackend",
    "allocation": "ropewalk.jobs.orchestration.sweep.trials.allocation:AllocationBackend",
}


def profile_file() -> Path | None:
    """Return $ROPEWALK_CLUSTERS, else ./clusters.yaml, else ~/.config/ropewalk/clusters.yaml; None if there is none."""
    configured = os.environ.get(PROFILES_VARIABLE)
    if configured:
        return Path(configured)
    return next((path for path in (LOCAL_FILE, _user_file()) if path.is_file()), None)


def _user_file() -> Path:
    return Path.home() / ".config/ropewalk/clusters.yaml"


def read_profiles() -> Mapping[str, Any]:
    """Return the content of the profile file by cluster, cached until the file changes. Raises ConfigError."""
    path = profile_file()
    if path is None:
        return {}
    return read_profile_file(path)


def read_profile_file(path: Path) -> Mapping[str, Any]:
    """Return the content of a profile file by cluster, cached until the file changes. Raises ConfigError."""
    status = path.stat() if path.is_file() else None
    return _read(path.absolute(), status and (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)
def _read(path: Path, version: object) -> Mapping[str, Any]:
    """Read the profile file; `version` is only a part of the cache key."""
    profiles = read_yaml(path)
    for name, keys in profiles.items():
        if not isinstance(name, str):
            raise ConfigError(f"{path}: the name of a cluster must be a string, is {name!r}; put it in quotes")
        _check_keys(f"{path}: cluster {name!r}", name, keys)
    return profiles


def _check_keys(source: str, name: str, keys: Any) -> None:
    """Check the keys of a profile that do not depend on its backend. Raises ConfigError."""
    if keys is None:
        return
    if not isinstance(keys, dict):
        raise ConfigError(f"{source}: must be keys with values, such as {name}: {{backend: slurm}}, is {keys!r}")
    for key, noun in (("backend", "name"), ("runs", "path")):
        if not isinstance(keys.get(key), str | None):
            raise ConfigError(f"{source}: {key}: must be a {noun}, is {keys[key]!r}")


def load_profile(name: str) -> Profile:
    """Return the profile of a cluster. `local`, `slurm` and `k8s` need no profile file.

    Raises ConfigError, also if the profile is in a file of the current directory that would start programs and is not trusted.
    Neither does `allocation`, the cluster of trials that run on the nodes of their sweep; users cannot submit to it.
    """
    profiles = read_profiles()
    if name in profiles:
        path = profile_file()
        if path == LOCAL_FILE and not os.environ.get(PROFILES_VARIABLE) and path.absolute() != _user_file():
            require_trust(path, profiles)
        options = dict(profiles[name] or {})
        return Profile(name=name, backend=str(options.pop("backend", name)), options=options)
    if name in {"local", "slurm", "k8s", "allocation"}:
        return Profile(name=name, backend=name)
    names = ", ".join(sorted({"local", "slurm", "k8s", *profiles}))
    source = profile_file() or "no profile file; see $ROPEWALK_CLUSTERS"
    raise ConfigError(f"unknown cluster {name!r}; known: {names} ({source})")


def load_backend(name: str) -> Backend:
    """Return the backend of a cluster: built-in, or an entry point. Raises ConfigError, UnknownBackendError."""
    named = str((read_profiles().get(name) or {}).get("backend", name))
    point = _entry_point(name, named) if name in read_profiles() and named not in BUILT_IN else None  # before trust is asked for
    profile = load_profile(name)
    if point is not None:
        backend: Backend = point.load()(profile)
        return backend
    module, _, kind = BUILT_IN[profile.backend].partition(":")
    built_in: Backend = getattr(import_module(module), kind)(profile)
    return built_in


def backend_of(run: RunDir) -> Backend:
    """Return the backend of a run's cluster. Raises ConfigError, UnknownBackendError."""
    return load_backend(str(run.record.get("cluster", "local")))


def _entry_point(name: str, backend: str) -> Any:
    """Return the entry point of a backend that is not built in. Raises ConfigError, UnknownBackendError."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow: it scans every installed package

    points = {point.name: point for point in entry_points(group=GROUP)}
    if backend in points:
        return points[backend]
    if backend == name:
        raise ConfigError(f"{profile_file()}: cluster {name!r} has no `backend`: add backend: slurm, k8s or local")
    near = difflib.get_close_matches(backend, sorted(points), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownBackendError(
        f"cluster {name!r} needs the backend {backend!r}, which is not installed{hint}; installed:"
        f" {', '.join(sorted(points)) or 'none'}"
    )
