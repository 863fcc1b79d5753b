"""What a backend is, and how `--on CLUSTER` finds one by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cluster.config import PathView, Resources, read_yaml
from cluster.errors import BackendError, ConfigError
from cluster.run_dir import RunDir
from cluster.spec import RunState

PROFILES_VARIABLE = "ROPEWALK_CLUSTERS"
GROUP = "ropewalk.backends"


@dataclass(frozen=True, kw_only=True)
class BackendState:
    """What a scheduler says of a run, in our word and in its own."""

    state: RunState
    word: str = ""  # the scheduler's own state
    reason: str = ""  # and its own reason
    remedy: str = ""  # what of the reason says what the user can do, where it does
    handle: str = ""  # such as slurm:12345, where the question told it


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `doctor`: what was looked at, whether it is well, and the remedy if not."""

    name: str
    ok: bool
    detail: str


class Backend(Protocol):
    """Allocates nodes, starts `python -m cluster.agent RUN_DIR` on each, carries signals. Nothing else."""

    ships_code: ClassVar[bool]  # its runs may start much later, so they take along the code that they were submitted with

    def render(self, run: RunDir, resources: Resources) -> str:
        """The script or manifest that `submit` would hand over; pure."""
        ...

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Open the run's next attempt and start it; returns the scheduler's handle, such as `slurm:12345`.

        The attempt is open on return: whoever asks for the run's outcome from now on gets that of a later day.
        """
        ...

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """`submit` of many new runs in one request, at most `at_once` of them running at a time; their handles, in order."""
        ...

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """What the scheduler says of these runs, by run id, in one call for all of them."""
        ...

    def cancel(self, run: RunDir) -> None:
        """Make the run save, leave and not come back."""
        ...

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        ...


def path_view(backend: Backend) -> PathView:
    """Where this machine sees the paths of a backend's cluster: the same, unless the backend has a `path_here`."""
    view: PathView = getattr(backend, "path_here", Path)
    return view


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One cluster of the profile file: a backend's name and that backend's own keys."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)


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
