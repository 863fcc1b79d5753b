"""The interface of scheduler backends, with defaults for everything that most schedulers do alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ropewalk.cluster.config import Packages, Resources
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.node_ledger import Failure, read_failures
from ropewalk.cluster.secrets.store import FileStore, SecretStore
from ropewalk.cluster.secrets.variables import missing_secrets
from ropewalk.cluster.spec import RunState


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A cluster of the profile file: the name of its backend, and the keys that this backend defines."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BackendState:
    """State of a run according to its scheduler."""

    state: RunState
    word: str = ""  # the scheduler's own term for the state
    reason: str = ""  # a sentence for people
    remedy: str = ""  # the part of `reason` that tells the user what to do; may be empty
    handle: str = ""  # such as slurm:12345; empty if the query did not return it


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Explanation of a run that waits: evidence as lines, and what would start sooner, if that is known."""

    lines: Sequence[str] = ()
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class GpuSupply:
    """GPUs that runs of a cluster can use."""

    per_node: int  # of the node that has most; on this machine, of all virtual nodes together
    owner: str = ""  # with its number: `the nodes of partition gpu have`, `this machine has`
    unoccupied: tuple[str, ...] | None = None  # devices that a run may take without a request; None: runs must request GPUs


@dataclass(frozen=True, kw_only=True)
class NodeProgram:
    """A program to start on a node of a run: a module of ours, whose arguments are the run's directory and the user's command."""

    module: str
    node: int
    address: str  # of the node
    command: Sequence[str] = ()  # the user's; empty: a shell
    terminal: bool = False  # at a terminal
    input: bool = False  # without a terminal: it gets this process's standard input, byte by byte


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `doctor`: the item checked, the result, and details with a remedy."""

    name: str
    ok: bool
    detail: str
    optional: bool = False  # a part that only some runs need


class Backend(ABC):
    """A cluster with its scheduler: allocates nodes, starts an agent on each, and forwards signals.

    A backend must implement `render`, `submit`, `states` and `cancel`; everything else has a default. The only argument of
    the constructor is the cluster's profile.
    """

    ships_code: bool = False  # copy the user's code at submission, since runs may start much later

    def __init__(self, profile: Profile) -> None:
        self.cluster = profile

    @property
    def mounts(self) -> Mapping[str, str]:
        """Return the directories of data that jobs name as data://NAME, as the cluster's nodes know them."""
        return {}

    # --- submitting

    @abstractmethod
    def render(self, run: RunDir, resources: Resources) -> str:
        """Return the script or manifest that `submit` would send. Contacts no scheduler and writes nothing."""

    def render_many(self, runs: Sequence[RunDir], resources: Resources) -> str:
        """Return what `submit_many` would send; by default the first run's script and the number of further runs."""
        more = f"# and {len(runs) - 1:,} more\n" if len(runs) > 1 else ""
        return f"{self.render(runs[0], resources).rstrip()}\n{more}"

    @abstractmethod
    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Open the run's next attempt, start it once its dependencies are met, and return a handle such as `slurm:12345`.

        `after`: dependencies as text: RUN (has succeeded), any:RUN (has ended) or failed:RUN (has ended without success).
        The attempt is open on return, so `last_outcome` no longer returns an outcome of an earlier attempt. Raises
        AlreadyRunningError if an earlier submission of the run is still active.
        """

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit many new runs, of which at most `at_once` run at the same time, and return their handles in order."""
        if at_once is not None and at_once < len(runs):
            raise ConfigError(f"--at-once {at_once}: cluster {self.cluster.name!r} has no such limit; remove the option")
        return [self.submit(run, resources, after) for run in runs]

    def check_resources(self, resources: Resources) -> None:  # noqa: B027 - the default accepts everything
        """Raise ConfigError for resources that this cluster can never provide. Called before the run directory is made."""

    def check_feasible(self, run: RunDir, resources: Resources) -> None:  # noqa: B027 - the default leaves it to the submission
        """Raise BackendError or ConfigError if the scheduler would refuse a run with these resources. It may have no files."""

    def check_waiting(self) -> None:  # noqa: B027 - the default: dependencies are supported
        """Raise ConfigError if runs cannot wait for other runs. Called before the run directories are made."""

    def check_capacity(self, runs: int) -> None:  # noqa: B027 - the default: any number
        """Raise ConfigError if the cluster cannot accept this many runs now. Called before run directories are made."""

    def check_access(self) -> None:  # noqa: B027 - the default: the cluster is always reachable
        """Raise ConfigError if this machine cannot reach the cluster. Called before run directories are made; not by dry runs."""

    def check_rights(self) -> None:  # noqa: B027 - the default: every process may submit
        """Raise ConfigError if this process may not submit runs. Called by a run that will submit other runs."""

    def packages(self, wanted: Packages | None) -> Packages | None:
        """Return the environment of a run that wants one, or none. Raises ConfigError if the cluster cannot unpack it."""
        return wanted

    def secret_store(self) -> SecretStore:
        """Return the store of this user's secrets on the cluster; by default files in the user's home. Raises ConfigError."""
        return FileStore.of_cluster(self.cluster.name)

    def check_secrets(self, names: Sequence[str]) -> None:
        """Raise ConfigError, with the remedy, if a secret is not set on this cluster."""
        if names and (missing := sorted(set(names) - {*self.secret_store().names()})):
            raise ConfigError(missing_secrets(missing, self.cluster.name))

    def resources_notice(self, resources: Resources) -> str:
        """Return a warning about these resources with a remedy, or an empty string."""
        return ""

    def gpu_supply(self) -> GpuSupply:
        """Return the GPUs that a run can use, none if the profile requests them for every run. Raises BackendError if unknown."""
        raise BackendError(f"cluster {self.cluster.name!r} does not report its GPUs")

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        """Describe when the run would start, and which smaller request would start sooner; empty if unknown."""
        return ""

    # --- states and cancellation

    @abstractmethod
    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return the state of each run by run id, with one query for all of them. Changes nothing."""

    def settle(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return what `states` does, and first record outcomes that only the scheduler knows. For callers that act on runs."""
        return self.states(runs)

    @abstractmethod
    def cancel(self, run: RunDir) -> None:
        """Have the run save and exit for good, or remove it from the queue if it waits."""

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """Cancel many runs, with as few scheduler commands as possible."""
        for run in runs:
            self.cancel(run)

    # --- the queue

    def explain_waiting(self, run: RunDir) -> Waiting:
        """Explain why a run waits: its priority, who is before it, limits. Never raises BackendError."""
        return Waiting()

    def hold(self, run: RunDir) -> None:
        """Keep a waiting run from starting until `release`. Raises ConfigError, also if it does not wait."""
        raise ConfigError(f"cluster {self.cluster.name!r} cannot hold runs; `ropewalk cancel {run.id}`, and `resume` it later")

    def release(self, run: RunDir) -> None:
        """Let a held run start again. Raises ConfigError."""
        raise ConfigError(f"cluster {self.cluster.name!r} cannot hold runs, so there is nothing to release")

    def lower_priority(self, run: RunDir, amount: int) -> None:
        """Set by how much a waiting run's priority is lowered; 0 restores it. Raises ConfigError."""
        raise ConfigError(f"cluster {self.cluster.name!r} has no priorities that users can change")

    def failures(self, root: Path) -> list[Failure]:
        """Return the failures of machines under this user's runs below a root."""
        return read_failures(root, self.cluster.name)

    def avoided_nodes(self, root: Path) -> Sequence[str]:
        """Return the machines that new runs below a root avoid, since they failed repeatedly (see `node_ledger`)."""
        return ()

    def checks(self) -> list[Check]:
        """Check this cluster for `doctor`."""
        return []

    def tunnel_command(self, run: RunDir, node: str, port: int, local_port: int) -> str:
        """Return the command that forwards a port of this machine to one of a run's first node; empty if none is needed."""
        return ""

    def shell_command(self, run: RunDir, program: NodeProgram) -> list[str]:
        """Return the command of this machine that starts a program on a node of a running run. Raises ConfigError."""
        raise ConfigError(f"cluster {self.cluster.name!r} cannot open a shell on the nodes of a run")

    # --- files of runs on a volume that this machine cannot access

    @property
    def shares_files(self) -> bool:
        """True if this machine can access the directories of the cluster's runs."""
        return True

    def path_here(self, path: str) -> Path | None:
        """Return this machine's path of a file that the cluster's nodes know as `path`; None if it is not accessible here."""
        return Path(path)

    def path_there(self, path: Path) -> str:
        """Return the path by which the cluster's nodes know a file below the runs' root of this machine."""
        return str(path)

    def fetch(self, wanted: Sequence[tuple[str, str]], store: str) -> None:  # noqa: B027 - the default: this machine fetches
        """Fetch inputs, each a pinned location and its need, into a store of a cluster whose files this machine cannot access."""

    def sync(  # noqa: B027 - the default: runs are accessible from this machine
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Update this machine's copy of a run that is stored elsewhere. Raises BackendError.

        Of large folders only the files in `wanted` are copied. `write`: small files to write into the original.
        `beside`: further runs to copy, such as a sweep's trials.
        """

    def run_beside(self, module: str, stdin: BinaryIO, stdout: BinaryIO) -> None:
        """Run a module of this program where the runs' files are, with the runs' root as its argument. Raises BackendError.

        Only for clusters whose files this machine cannot access.
        """
        raise BackendError(f"cluster {self.cluster.name!r} cannot run programs beside its files")

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
        """Export a checkpoint where it is stored and copy the model here. Return False, doing nothing, if it is stored here.

        `options`: further arguments of the export program.
        """
        return False
