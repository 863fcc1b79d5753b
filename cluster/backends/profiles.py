"""The clusters that a user describes: the profile file, and how `--on CLUSTER` finds a backend by name."""

import os
from importlib.metadata import entry_points
from pathlib import Path

from cluster.backends.base import Backend, Profile
from cluster.config import read_yaml
from cluster.errors import BackendError, ConfigError

PROFILES_VARIABLE = "ROPEWALK_CLUSTERS"
GROUP = "ropewalk.backends"


def profile_file() -> Path | None:
    """$ROPEWALK_CLUSTERS, else ./clusters.yaml, else ~/.config/ropewalk/clusters.yaml; None if there is none."""
    named = os.environ.get(PROFILES_VARIABLE)
    if named:
        return Path(named)
    places = (Path("clusters.yaml"), Path.home() / ".config/ropewalk/clusters.yaml")
    return next((place for place in places if place.is_file()), None)


def load_profile(name: str) -> Profile:
    """The cluster that `--on NAME` means. `local`, `slurm` and `k8s` exist without a file.

    So does `allocation`, under which trials inside their sweep's nodes are known; nobody submits to it.
    """
    path = profile_file()
    profiles = read_yaml(path) if path else {}
    if name in profiles:
        options = dict(profiles[name] or {})
        return Profile(name=name, backend=str(options.pop("backend", name)), options=options)
    if name in {"local", "slurm", "k8s", "allocation"}:
        return Profile(name=name, backend=name)
    known = ", ".join(sorted({"local", "slurm", "k8s", *profiles}))
    where = path or "no profile file; see $ROPEWALK_CLUSTERS"
    raise ConfigError(f"unknown cluster {name!r}; known: {known} ({where})")


def load_backend(name: str) -> Backend:
    """The backend of a cluster, found through the entry-point group `ropewalk.backends`."""
    profile = load_profile(name)
    for point in entry_points(group=GROUP, name=profile.backend):
        backend: Backend = point.load()(profile)
        return backend
    installed = ", ".join(sorted(p.name for p in entry_points(group=GROUP))) or "none"
    raise BackendError(f"cluster {name!r} needs the backend {profile.backend!r}, which is not installed; installed: {installed}")
