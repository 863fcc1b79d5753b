"""Configuration keys of a Slurm cluster in the profile file."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import Packages
from ropewalk.cluster.data_mounts import MOUNTS_HELP, Mounts
from ropewalk.cluster.secrets.plain_text import check_variables
from ropewalk.cluster.section import Section

# options that the job script sets itself
RESERVED_OPTIONS = frozenset(
    {"job-name", "comment", "nodes", "ntasks", "ntasks-per-node", "time", "signal", "requeue", "no-requeue", "open-mode"}
    | {"output", "error", "chdir", "parsable", "dependency", "kill-on-invalid-dep", "no-kill", "array", "wait", "wrap"}
    | {"export", "gpus-per-node", "cpus-per-task", "mem"}
)
_LONG_NAME = re.compile(r"[a-z][a-z0-9-]*")


class Container(Section):
    """Container image in which agents run. The job script itself runs outside it, where Slurm's commands are."""

    runtime: Literal["apptainer", "singularity", "pyxis", "charliecloud", "podman"] = Field(description="container runtime")
    image: str = Field(description="image, in the runtime's notation")
    mounts: tuple[str, ...] = Field(
        default=(), description="further directories to mount, as /path or /outside:/inside; the runs directory always is"
    )
    options: tuple[str, ...] = Field(
        default=(), description="further options of the runtime, such as charliecloud's --write-fake, which creates mount points"
    )

    @field_validator("mounts")
    @classmethod
    def _absolute(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for mount in mounts:
            if not mount.startswith("/"):
                raise ValueError(f"must be absolute, such as /path or /outside:/inside; {mount!r} is not")
        return mounts


class SlurmProfile(Section):
    """Profile of one Slurm cluster; every key is optional. Options of sbatch have sbatch's names."""

    runs: str | None = Field(default=None, description="runs directory, on a file system that all nodes share")
    host: str | None = Field(
        default=None,
        description="login node, as ssh knows it; commands run there, and `runs` and absolute paths are paths there",
    )
    ssh: tuple[str, ...] = Field(default=("ssh",), min_length=1, description="command that reaches `host`, with further options")
    mounts: Mounts = Field(default={}, description=MOUNTS_HELP)
    partition: str | None = Field(default=None, description="partition, or several: a,b")
    account: str | None = Field(default=None, description="account that the time is charged to")
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="node features that the job requires")
    gres: str | None = Field(default=None, description="generic resources per node, unless resources.gpus is enough")
    reservation: str | None = Field(default=None, description="reservation to use")
    exclude: str | None = Field(default=None, description="nodes to avoid")
    exclusive: bool = Field(default=False, description="allocate whole nodes")
    sbatch: dict[str, str | int | bool] = Field(default={}, description="further options of sbatch, by long name")
    setup: tuple[str, ...] = Field(default=(), description="first lines of the job script, such as module load ...")
    packages: Packages | None = Field(default=None, description="Python environment of runs that name none in their `packages`")
    environment: dict[str, str] = Field(default={}, description="environment variables; no secrets")
    python: str | None = Field(
        default=None, description="Python that runs the agents; default: the submitting one, or `python` in a container image"
    )
    container: Container | None = Field(default=None, description="container image in which agents run")
    interface: str | None = Field(default=None, description="network interface for NCCL and gloo, such as ib0")
    requeue_at_once: bool = Field(default=True, description="skip the two minutes that Slurm lets a requeued job wait")

    @field_validator("host")
    @classmethod
    def _one_word(cls, host: str | None) -> str | None:
        if host is not None and (not host or host.startswith("-") or host.split() != [host]):
            raise ValueError(f"must be a name that ssh knows, such as login.big or me@login.big, is {host!r}")
        return host

    @model_validator(mode="after")
    def _root_there(self) -> Self:
        if self.host is not None and self.runs is None:
            raise ValueError("`host` needs `runs`, the directory of the runs there")
        return self

    @field_validator("sbatch")
    @classmethod
    def _only_unreserved(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        plain = {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}
        for name in plain:
            if not _LONG_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the long name of an sbatch option: lower-case letters, digits and hyphens")
        reserved = sorted(set(plain) & (RESERVED_OPTIONS | set(cls.model_fields)))
        if reserved:
            raise ValueError(f"{reserved[0]} has its own key in the profile or the job's resources, or is set by the job script")
        return plain

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, values: dict[str, str]) -> dict[str, str]:
        check_variables(values, "job scripts are stored as files; a job's key secrets names it after `ropewalk secret set NAME`")
        return values

    @model_validator(mode="after")
    def _no_special_characters(self) -> "SlurmProfile":
        for name, value in self.options.items():
            if re.search(r"[\s#'\"\\]", str(value)):
                raise ValueError(
                    f"{name}: {value!r} contains blanks, quotes, backslashes or #, which an #SBATCH line cannot hold"
                )
        return self

    @property
    def requests_gpus(self) -> bool:
        """True if an option of the profile requests GPUs for every job."""
        return any(
            name.startswith("gpus") or (name in {"gres", "tres-per-task"} and "gpu" in str(value))
            for name, value in self.options.items()
        )

    @property
    def options(self) -> dict[str, str | int | bool]:
        """Return the sbatch options of the profile by long name."""
        names = ("partition", "account", "qos", "constraint", "gres", "reservation", "exclude", "exclusive")
        options = {name: getattr(self, name) for name in names if getattr(self, name)}
        return {**options, **self.sbatch}
