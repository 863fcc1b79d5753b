"""Configuration keys that every job has, as frozen pydantic models."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, PathView, Resolve, map_inputs
from ropewalk.cluster.secrets.store import check_name
from ropewalk.cluster.section import Section
from ropewalk.cluster.spec import Engine


class CountRange(Section):
    """A count, such as `2`, or a range of counts, such as `1..4`."""

    noun: ClassVar[str]

    least: int = Field(ge=1)
    most: int = Field(ge=1)

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Parse `2`, `"2"` or `"1..4"`; return anything else unchanged. Raises ValueError."""
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
        """Return the range as written in a job file."""
        return self.least if self.least == self.most else f"{self.least}..{self.most}"

    def __str__(self) -> str:
        return str(self.plain())


class NodeRange(CountRange):
    """Number of nodes of a run: `2`, or `1..4` for an elastic run."""

    noun = "nodes"

    @property
    def elastic(self) -> bool:
        """True if the number of nodes may change while the run goes on."""
        return self.least < self.most


Nodes = Annotated[NodeRange, BeforeValidator(NodeRange.parse), PlainSerializer(NodeRange.plain)]


class Resources(Section):
    """Resources that a run requests from its scheduler; the same keys on every backend."""

    nodes: Nodes = Field(default=NodeRange(least=1, most=1), description="number of nodes, or a range such as 1..4 (elastic)")
    spare_nodes: int = Field(default=0, ge=0, description="further nodes, one of which takes the place of a node that is lost")
    ranks_per_node: int | None = Field(default=None, ge=1, description="ranks per node; unset: one per GPU, else one")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores per node; unset: the backend's default")
    gpus: int = Field(
        default=0,
        ge=0,
        description="GPUs per node. A job that computes on a model and does not set it takes this machine's unoccupied GPUs, and"
        " must set it on a cluster that has GPUs",
    )
    memory_gib: float | None = Field(default=None, gt=0, description="memory per node, GiB")
    time_limit_minutes: float | None = Field(default=None, gt=0, description="wall-clock limit of one attempt, minutes")
    grace_seconds: float = Field(default=120, gt=0, description="seconds before the time limit at which to save and exit")
    idle_minutes: float | None = Field(
        default=None,
        gt=0,
        description="minutes in which no GPU of the run is used, after which it saves and is cancelled; loading, compilation,"
        " validation and saves do not count; unset: only a warning",
    )
    check_nodes: bool = Field(
        default=False,
        description="before the first group of an attempt forms, check each node's clock, shared memory, ports, interfaces, file"
        " system and GPUs, and the network between them: a second, at most 20",
    )

    @property
    def allocated_nodes(self) -> NodeRange:
        """Number of nodes to request from the scheduler: an elastic run also starts without its spare ones."""
        least = self.nodes.least + (0 if self.nodes.elastic else self.spare_nodes)
        return NodeRange(least=least, most=self.nodes.most + self.spare_nodes)

    @property
    def replaces_nodes(self) -> bool:
        """True if an attempt outlives the loss of a node, since it can do with fewer ones or has spare ones."""
        return self.nodes.elastic or self.spare_nodes > 0

    def as_allocated(self) -> "Resources":
        """Return the request of a run of as many nodes as this one allocates, none of them spare."""
        return self.model_copy(update={"nodes": self.allocated_nodes, "spare_nodes": 0})

    def wanted_nodes(self, scaled: int | None) -> int:
        """Return the number of nodes to hold. `scaled`: of an elastic run, which has spare nodes beside its largest group."""
        group = max(self.nodes.least, min(scaled or self.nodes.most, self.nodes.most)) if self.nodes.elastic else self.nodes.most
        return group + (self.spare_nodes if group == self.nodes.most else 0)

    @property
    def local_world_size(self) -> int:
        """Number of ranks on one node: `ranks_per_node`, else one per GPU, else one."""
        return self.ranks_per_node or self.gpus or 1

    def check_ranks(self) -> None:
        """Raise ConfigError if the GPUs of a node cannot be split evenly over its ranks."""
        ranks, gpus = self.local_world_size, self.gpus
        if gpus % ranks:
            remedy = f"remove ranks_per_node to get one rank per GPU, or set gpus={ranks}"
            raise ConfigError(f"resources: {gpus} GPUs per node cannot be split evenly over {ranks} ranks per node; {remedy}")


@dataclass(frozen=True, kw_only=True)
class UnsetGpus:
    """Part of a submission that computes on a model and does not set `gpus`: the job itself, or a run that it starts."""

    resources: Resources
    section: str = "resources"  # dotted key that holds the resources
    most: int | None = None  # number of a node's GPUs that it can use; None: all
    others: tuple[str, ...] = ()  # further overrides that it needs to use GPUs

    def inside(self, key: str) -> "UnsetGpus":
        """Return the same part of a job whose keys are held by another job's key."""
        return replace(self, section=f"{key}.{self.section}", others=tuple(f"{key}.{other}" for other in self.others))


class Retries(Section):
    """Budgets of automatic retries. Exit code 42 is never retried."""

    bugs: int = Field(
        default=2,
        ge=0,
        description="retries after errors of the program; the same error twice right after the start ends the run",
    )
    disturbances: int = Field(default=100, ge=0, description="retries after preemptions, time limits and lost nodes")
    hung_seconds: float | None = Field(
        default=300,
        gt=0,
        description="replace ranks without progress after this many seconds, even if they compute; those that sleep after the "
        "longer of ten steps and 15 s, those that are stopped at once; null: none of it",
    )


class Tracking(Section):
    """W&B settings of a run. W&B works offline unless there is a login and a network; see `ropewalk sync`."""

    project: str | None = Field(default=None, description="W&B project; unset: $WANDB_PROJECT, else ropewalk")
    entity: str | None = Field(
        default=None, description="W&B user or team; unset: $WANDB_ENTITY, else the default entity of the API key"
    )
    group: str | None = Field(default=None, description="W&B group; unset: the run's name, else the job's name")
    tags: tuple[str, ...] = Field(default=(), description="W&B tags, in addition to the cluster's name")
    job_type: str | None = Field(default=None, description="W&B job type; unset: the job's name")
    notes: str | None = Field(default=None, description="W&B notes")
    upload: Literal["best", "all"] | None = Field(
        default=None, description="checkpoints to upload: the best one at the end, or all; unset: none, only their paths"
    )
    alerts: Literal["none", "failures", "all"] = Field(
        default="failures", description="events for which W&B alerts the run's owner"
    )
    tables: Literal["none", "figures", "all"] | None = Field(
        default=None,
        description="tables and plots to send: none (nor uncommitted changes of the code), figures (plots and tables of numbers, "
        "no texts), or all; unset: all, but figures if the data come from `collect` or the run belongs to a refresh",
    )


class CodeConfig(Section):
    """Part of the user's code that is copied with a run to a cluster."""

    ship: bool = Field(
        default=True, description="copy the code at submission; false: run it from the directory as it is at start"
    )
    root: DataPath | None = Field(
        default=None, description="directory to copy; unset: the git work tree that contains the project, else the project"
    )
    exclude: list[str] = Field(
        default=[], description="patterns of files to leave out, such as `data/*`; files that git ignores are never copied"
    )


HANGS = frozenset({"retries.hung_seconds", "resources.spare_nodes"})  # jobs that do not train: no heartbeats, no spare nodes
WEIGHTS = frozenset({"wandb.upload"})  # jobs without checkpoints of a model
RANKS = frozenset({"resources.ranks_per_node"})  # jobs that are not run by ranks


RUN_KEYS = ("name", "resources.nodes", "resources.gpus", "resources.time_limit_minutes")  # usual in every job


class Packages(Section):
    """The Python environment of a run, which its nodes unpack to their disks: name one of the keys."""

    uv: DataPath | None = Field(default=None, description="a uv.lock beside its pyproject.toml; built once on the cluster")
    path: DataPath | None = Field(default=None, description="a packed environment (conda-pack's archive), or a folder to pack")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.uv is None) == (self.path is None):
            raise ValueError("name one of: uv, a uv.lock; path, a packed environment or a folder")
        return self


class JobConfig(Section):
    """Keys that every job has."""

    # the dotted keys, and sections that are unset by default, that help prints first, in this order; none: it prints all keys
    usual_keys: ClassVar[tuple[str, ...]] = ()
    has_checkpoints: ClassVar[bool] = True  # False: nothing is saved when the run is stopped
    # True: `packages` are for the user's program, or for runs that this one starts, and need not contain ropewalk
    passes_packages_on: ClassVar[bool] = False

    name: str | None = Field(
        default=None, description="name of the run; its id begins with it, in lower case with dashes; unset: the job's name"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed")
    secrets: tuple[Annotated[str, AfterValidator(check_name)], ...] = Field(
        default=(), description="secrets of the cluster that its processes get as variables of these names; see `ropewalk secret`"
    )
    packages: Packages | None = Field(default=None, description="Python environment to take along; unset: the profile's, or none")
    resources: Resources = Field(default=Resources(), description="resources to request from the scheduler")
    retries: Retries = Field(default=Retries(), description="budgets of automatic retries")
    wandb: Tracking = Field(default=Tracking(), description="W&B settings")
    trackers: tuple[str, ...] = Field(
        default=(), description="trackers that get the metrics in addition to W&B: tensorboard, mlflow, trackio"
    )

    def preflight(self, here: PathView = Path) -> None:
        """Check on the submitting machine what is cheap to check, such as that inputs exist. Raises ConfigError, DataError.

        `here` maps a path of the target cluster to this machine's path of the same file.
        """

    def with_inputs(self, resolve: Resolve) -> Self:
        """Return the configuration with its marked inputs replaced, also those of runs that it starts. Raises ConfigError."""
        mapped: Self = map_inputs(self, resolve)
        return mapped

    def project(self) -> tuple[str, CodeConfig] | None:
        """Return the directory of user code that the run needs, and how to copy it; None if it needs none."""
        return None

    def own_code(self) -> bool:
        """Return True if keys name modules in the current directory (MODULE:NAME), which is then copied with the run."""
        return False

    def asks_hub(self) -> bool:
        """Return True if processes of the run may ask the Hugging Face hub: the user's own code, or tasks whose data is there."""
        return self.own_code()

    def required_environment(self) -> Mapping[str, str]:
        """Return variables that an agent sets before its processes start, unless its environment has them."""
        return {}

    def secret_names(self) -> Sequence[str]:
        """Return the secrets that the run's nodes need, also those of runs that it starts on its own nodes."""
        return self.secrets

    def preferred_engine(self) -> Engine | None:
        """Return the engine if the configuration determines it, or None for the job's default."""
        return None

    def check_keys(self) -> None:
        """Raise ConfigError for keys that contradict each other or name code that cannot be imported; data is not read."""

    def resolved(self) -> Self:
        """Return the configuration to store in run.yaml. Called once per submission; may be expensive. Raises ConfigError."""
        self.check_keys()
        return self

    def children_cluster(self) -> str | None:
        """Return the cluster to which this run submits runs; it must have access to this run's files and code."""
        return None

    def children_resources(self) -> list[Resources]:
        """Return the resources of the runs that are submitted to the same cluster together with this one."""
        return []

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return the parts of this submission that compute on a model and do not set `gpus`. Raises ConfigError."""
        return []

    @property
    def needs_others(self) -> bool:
        """True if the run waits for runs that are submitted together with it."""
        return False

    def extra_record(self, cluster_name: str) -> dict[str, Any]:
        """Return further content of run.yaml that only the submitting machine can determine."""
        return {}


class ModelJobConfig(JobConfig):
    """Keys of a job that trains or computes on a model, on GPUs wherever there are some."""

    def unset_gpus(self) -> list[UnsetGpus]:
        return [] if "gpus" in self.resources.model_fields_set else [UnsetGpus(resources=self.resources)]
