"""The keys that every job has, and what each group of keys is: a frozen pydantic model."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.spec import Engine


class Section(BaseModel):
    """Base of every group of keys: frozen, without unknown keys, and with defaults that are validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)


_SECRET = re.compile(r"(key|token|secret|passw(or)?d|credentials?)$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_variables(names: Iterable[str], secret_remedy: str) -> None:
    """Raise ValueError for a variable of a profile's `environment` that no shell takes, or that looks like a secret."""
    for name in names:
        if _SECRET.search(name):
            raise ValueError(f"variable {name} looks like a secret, and {secret_remedy}")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"variable {name!r}: a name consists of letters, digits and _, and does not begin with a digit")


def absolute(path: str) -> str:
    """Make a local path absolute from the current directory; leave a URL (s3://...) as it is."""
    return path if re.match(r"^[a-z0-9+]+:", path) else str(Path(path).expanduser().absolute())


# Where this machine sees what a cluster calls by a path; None: it does not see it, and cannot check it.
PathView = Callable[[str], Path | None]

# A path or fsspec URL that a user gives; made absolute at submission, since a rank has another current directory.
DataPath = Annotated[str, AfterValidator(absolute)]


class CountRange(Section):
    """How many of something: `2`, or `1..4`."""

    noun: ClassVar[str]

    least: int = Field(ge=1)
    most: int = Field(ge=1)

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Read `2`, `"2"`, `"1..4"` or an existing range. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            return value
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
        if not match:
            raise ValueError(f"must be a number of {cls.noun} or a range such as 1..4")
        least, most = int(match[1]), int(match[2] or match[1])
        if not 1 <= least <= most:
            raise ValueError("must be at least 1, and a range must rise, such as 1..4")
        return {"least": least, "most": most}

    def plain(self) -> int | str:
        """The range as a job file has it."""
        return self.least if self.least == self.most else f"{self.least}..{self.most}"

    def __str__(self) -> str:
        return str(self.plain())


class NodeRange(CountRange):
    """How many nodes a run takes: `2`, or `1..4` for an elastic run."""

    noun = "nodes"

    @property
    def elastic(self) -> bool:
        """Whether the run may go on with fewer nodes, or grow."""
        return self.least < self.most


Nodes = Annotated[NodeRange, BeforeValidator(NodeRange.parse), PlainSerializer(NodeRange.plain)]


class Resources(Section):
    """What a run asks of a scheduler, in the same words on every backend."""

    nodes: Nodes = Field(default=NodeRange(least=1, most=1), description="nodes, or a range such as 1..4 (elastic)")
    ranks_per_node: int | None = Field(default=None, ge=1, description="ranks per node; unset: one per GPU, else one")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores per node; unset: what the backend gives")
    gpus: int = Field(default=0, ge=0, description="GPUs per node")
    memory_gib: float | None = Field(default=None, gt=0, description="memory per node, GiB")
    time_limit_minutes: float | None = Field(default=None, gt=0, description="wall-clock limit of one attempt")
    grace_seconds: float = Field(default=120, gt=0, description="seconds of notice before the limit, to save and exit")

    @property
    def local_world_size(self) -> int:
        """The ranks of one node: `ranks_per_node`, else one per GPU, else one."""
        return self.ranks_per_node or self.gpus or 1

    def check_ranks(self) -> None:
        """Raise ConfigError if the GPUs of a node cannot be split evenly over its ranks; older records are not checked."""
        ranks, gpus = self.local_world_size, self.gpus
        if gpus % ranks:
            remedy = f"leave ranks_per_node out for one rank per GPU, or set gpus={ranks}"
            raise ConfigError(f"resources: {gpus} GPUs per node cannot be split evenly over {ranks} ranks per node; {remedy}")


class Retries(Section):
    """How often a run is tried again by itself. Exit code 42 is never retried."""

    bugs: int = Field(default=2, ge=0, description="retries after an error of the program")
    disturbances: int = Field(default=100, ge=0, description="retries after preemption, time limit or a lost node")
    hung_steps: float | None = Field(
        default=10, gt=1, description="replace ranks that make no progress for this many recent steps and 3 s; null: never"
    )


class Tracking(Section):
    """Where W&B shows a run. It is offline unless there is a login and a network; see `ropewalk sync`."""

    project: str | None = Field(default=None, description="W&B project; unset: $WANDB_PROJECT, else ropewalk")
    entity: str | None = Field(default=None, description="W&B user or team; unset: $WANDB_ENTITY, else the key's own")
    group: str | None = Field(default=None, description="W&B group; unset: the run's name, else its job")
    tags: tuple[str, ...] = Field(default=(), description="W&B tags, besides the cluster")
    job_type: str | None = Field(default=None, description="W&B job type; unset: the job")
    notes: str | None = Field(default=None, description="W&B notes")
    upload: Literal["best", "all"] | None = Field(
        default=None, description="weights to upload: of the best checkpoint at the end, or of all; unset: none, they are named"
    )
    alerts: Literal["none", "failures", "all"] = Field(default="failures", description="what W&B tells the run's owner at once")


class CodeConfig(Section):
    """Which of the user's code travels with a run to a cluster, where it may start much later."""

    ship: bool = Field(default=True, description="false: the program runs in the directory itself, as it is when it starts")
    root: DataPath | None = Field(
        default=None, description="what travels; unset: the git work tree around the directory, else it"
    )
    exclude: list[str] = Field(
        default=[], description="patterns of what stays behind, such as `data/*`; git's ignored files do anyway"
    )


class JobConfig(Section):
    """The keys that every job has."""

    name: str | None = Field(default=None, description="name of the run; unset: the job's")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every random choice")
    resources: Resources = Field(default=Resources(), description="what to ask the scheduler for")
    retries: Retries = Field(default=Retries(), description="retry budgets")
    wandb: Tracking = Field(default=Tracking(), description="how W&B shows the run")
    trackers: tuple[str, ...] = Field(
        default=(), description="trackers besides W&B that get the metrics: tensorboard, mlflow, trackio"
    )

    def preflight(self, here: PathView = Path) -> None:
        """Check what only the submitting machine can check cheaply (local inputs exist). Raises ConfigError/DataError.

        `here` says where this machine sees a path of the cluster that the run goes to.
        """

    def project(self) -> tuple[str, CodeConfig] | None:
        """The directory of the user's own code that the run needs, and how it travels; None: it needs none."""
        return None

    def preferred_engine(self) -> Engine | None:
        """Return the engine, if these keys decide it; None leaves the job's own."""
        return None

    def resolved(self) -> Self:
        """Return the configuration as run.yaml holds it; asked once, by submission, for what costs more than a validation.

        Raises ConfigError.
        """
        return self

    def children_cluster(self) -> str | None:
        """Return the cluster to which this run submits other runs: it must see this run's files, and have its code."""
        return None

    def children_resources(self) -> list[Resources]:
        """Return what the runs that are submitted together with this one ask of the same cluster."""
        return []

    @property
    def needs_others(self) -> bool:
        """Whether the run waits for runs that are submitted together with it."""
        return False

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return what run.yaml must hold besides the keys, and only the submitting machine knows."""
        return {}
