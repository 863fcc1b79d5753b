"""The clusters that a user describes: the profile file, and how `--on CLUSTER` finds a backend by name."""

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend, Profile
from ropewalk.cluster.config_reader import read_yaml
from ropewalk.cluster.errors import ConfigError, UnknownBackendError

PROFILES_VARIABLE = "ROPEWALK_CLUSTERS"
GROUP = "ropewalk.backends"
# those of this program, which are found without a look at every package that is installed (40 ms)
OWN = {
    "local": "ropewalk.cluster.backends.local.backend:LocalBackend",
    "slurm": "ropewalk.slurm.backend:SlurmBackend",
    "k8s": "ropewalk.k8s.backend:K8sBackend",
    "allocation": "ropewalk.jobs.orchestration.sweep.allocation:AllocationBackend",
}


def profile_file() -> Path | None:
    """$ROPEWALK_CLUSTERS, else ./clusters.yaml, else ~/.config/ropewalk/clusters.yaml; None if there is none."""
    named = os.environ.get(PROFILES_VARIABLE)
    if named:
        return Path(named)
    places = (Path("clusters.yaml"), Path.home() / ".config/ropewalk/clusters.yaml")
    return next((place for place in places if place.is_file()), None)


def read_profiles() -> Mapping[str, Any]:
    """What the profile file says, by cluster; it is read again only when it has changed. Raises ConfigError."""
    path = profile_file()
    if path is None:
        return {}
    status = path.stat() if path.is_file() else None
    return _read(path.absolute(), status and (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)
def _read(path: Path, version: object) -> Mapping[str, Any]:
    """The file in one `version`; a change of the version is what makes it be read again."""
    profiles = read_yaml(path)
    for name, keys in profiles.items():
        if not isinstance(name, str):
            raise ConfigError(f"{path}: the name of a cluster must be text, is {name!r}; put it into quotes")
        _check_keys(f"{path}: cluster {name!r}", name, keys)
    return profiles


def _check_keys(where: str, name: str, keys: Any) -> None:
    """Raise ConfigError unless a profile is as far right as can be told without its backend."""
    if keys is None:
        return
    if not isinstance(keys, dict):
        raise ConfigError(f"{where}: must be keys with values, such as {name}: {{backend: slurm}}, is {keys!r}")
    for key, what in (("backend", "name"), ("runs", "path")):
        if not isinstance(keys.get(key), str | None):
            raise ConfigError(f"{where}: {key}: must be a {what}, is {keys[key]!r}")


def load_profile(name: str) -> Profile:
    """The cluster that `--on NAME` means. `local`, `slurm` and `k8s` exist without a file.

    So does `allocation`, under which trials inside their sweep's nodes are known; nobody submits to it.
    """
    profiles = read_profiles()
    if name in profiles:
        options = dict(profiles[name] or {})
        return Profile(name=name, backend=str(options.pop("backend", name)), options=options)
    if name in {"local", "slurm", "k8s", "allocation"}:
        return Profile(name=name, backend=name)
    known = ", ".join(sorted({"local", "slurm", "k8s", *profiles}))
    where = profile_file() or "no profile file; see $ROPEWALK_CLUSTERS"
    raise ConfigError(f"unknown cluster {name!r}; known: {known} ({where})")


def load_backend(name: str) -> Backend:
    """The backend of a cluster: one of this program's, else one of the entry-point group `ropewalk.backends`."""
    profile = load_profile(name)
    if profile.backend in OWN:
        module, _, kind = OWN[profile.backend].partition(":")
        own: Backend = getattr(import_module(module), kind)(profile)
        return own
    from importlib.metadata import entry_points  # noqa: PLC0415 - it looks through every package that is installed

    for point in entry_points(group=GROUP, name=profile.backend):
        backend: Backend = point.load()(profile)
        return backend
    if profile.backend == name:
        raise ConfigError(f"{profile_file()}: cluster {name!r} has no `backend`: add backend: slurm, k8s or local")
    installed = ", ".join(sorted(p.name for p in entry_points(group=GROUP))) or "none"
    raise UnknownBackendError(
        f"cluster {name!r} needs the backend {profile.backend!r}, which is not installed; installed: {installed}"
    )
