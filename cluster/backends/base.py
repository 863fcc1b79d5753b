"""What a backend is, and how `--on CLUSTER` finds one by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from cluster.config import PathView, Resources
from cluster.run.directory import RunDir
from cluster.spec import RunState


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
