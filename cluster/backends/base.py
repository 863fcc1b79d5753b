"""What a backend is: one class with all that is ever asked of a scheduler, and a default wherever most have the same answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One cluster of the profile file: a backend's name and that backend's own keys."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)


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


class Backend(ABC):
    """A cluster, as its scheduler's backend sees it: it allocates nodes, starts an agent on each, and carries signals.

    A scheduler has to answer `render`, `submit`, `states` and `cancel`; all else has a default. Whoever loads a backend
    makes it from the cluster's profile alone.
    """

    ships_code: bool = False  # runs may start much later, so they take along the code that they were submitted with

    def __init__(self, profile: Profile) -> None:
        self.cluster = profile

    # --- submitting

    @abstractmethod
    def render(self, run: RunDir, resources: Resources) -> str:
        """The script or manifest that `submit` would hand over. Asks nobody and writes nothing."""

    def render_many(self, runs: Sequence[RunDir], resources: Resources) -> str:
        """What `submit_many` would hand over: unless the scheduler has arrays, the first run's script and how many follow."""
        more = f"# and {len(runs) - 1:,} more\n" if len(runs) > 1 else ""
        return f"{self.render(runs[0], resources).rstrip()}\n{more}"

    @abstractmethod
    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Open the run's next attempt and start it once the runs `after` have succeeded; the handle, such as `slurm:12345`.

        The attempt is open on return: whoever asks for the run's outcome from now on gets that of a later day. Raises
        AlreadyRunningError if an earlier submission of the run is under way.
        """

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit many new runs, of which at most `at_once` may run at a time; their handles, in order."""
        if at_once is not None and at_once < len(runs):
            raise ConfigError(f"--at-once {at_once}: cluster {self.cluster.name!r} cannot hold runs back; leave it out")
        return [self.submit(run, resources, after) for run in runs]

    def check_resources(self, resources: Resources) -> None:  # noqa: B027 - the default: nothing is refused
        """Raise ConfigError for resources that this cluster can never have. Asked before a run is written down."""

    def check_waiting(self) -> None:  # noqa: B027 - the default: a run may wait for others
        """Raise ConfigError where no run can be held back until others are over. Asked before runs are written down."""

    def check_access(self) -> None:  # noqa: B027 - the default: nothing leads there that may be missing
        """Raise ConfigError where this machine knows no way to the cluster. Asked before runs are written down; by no dry run."""

    def check_rights(self) -> None:  # noqa: B027 - the default: whoever reaches the scheduler may submit
        """Raise ConfigError where this process may not submit runs. Asked by a run that is going to submit others."""

    def resources_notice(self, resources: Resources) -> str:
        """What of these resources would surprise whoever submits, with the remedy; empty: nothing."""
        return ""

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        """Whether the run would wait, why, and what smaller request would start sooner; empty: nobody can tell."""
        return ""

    # --- asking and ending

    @abstractmethod
    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """What the scheduler says of these runs, by run id, in one call for all of them."""

    def settle(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """The runs' states, as `states` tells them, for whoever acts on the runs: what has become certain of them is written
        down first, such as an end of which only the scheduler knows. Looking (`states`) changes nothing.
        """
        return self.states(runs)

    @abstractmethod
    def cancel(self, run: RunDir) -> None:
        """Make the run save, leave and not come back; take it out of the queue if it waits."""

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """Cancel many runs, in few commands where the scheduler has such."""
        for run in runs:
            self.cancel(run)

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        return []

    def way_to(self, run: RunDir, node: str, port: int) -> str:
        """The command that makes a port of a run's first node a port of this machine; empty: none is needed."""
        return ""

    # --- files, where runs lie on a volume that this machine does not see

    @property
    def shares_files(self) -> bool:
        """Whether this machine sees the directories of the cluster's runs."""
        return True

    def path_here(self, path: str) -> Path | None:
        """Where this machine sees what the cluster's nodes call by `path`; None: it does not see that place."""
        return Path(path)

    def sync(  # noqa: B027 - the default: runs lie where this machine sees them
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Bring this machine's copy of a run up to date, unless the run itself lies here. Raises BackendError.

        Large folders come only as far as they are `wanted`; `write` are small files to write where the run lies; `beside` are
        other runs there that come along, such as a sweep's trials.
        """

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
        """Export a checkpoint where it lies and bring the model here; False: it lies here, and nothing was done.

        `options` are further words of the program that exports.
        """
        return False
