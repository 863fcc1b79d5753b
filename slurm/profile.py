"""The keys of a Slurm cluster in the profile file, checked."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import Section, check_variables

# what the job script decides itself
OWN_OPTIONS = frozenset(
    {"job-name", "comment", "nodes", "ntasks", "ntasks-per-node", "time", "signal", "requeue", "no-requeue", "open-mode"}
    | {"output", "error", "chdir", "parsable", "dependency", "kill-on-invalid-dep", "no-kill", "array", "wait", "wrap"}
    | {"export", "gpus-per-node", "cpus-per-task", "mem"}
)
_LONG_NAME = re.compile(r"[a-z][a-z0-9-]*")


class Container(Section):
    """The image in which agents run. The job script itself stays outside, where Slurm's commands are."""

    runtime: Literal["apptainer", "singularity", "pyxis", "charliecloud", "podman"] = Field(description="what starts it")
    image: str = Field(description="the image, as the runtime names it")
    mounts: tuple[str, ...] = Field(default=(), description="/path or /outside:/inside, for data; the runs' directory always is")
    options: tuple[str, ...] = Field(
        default=(), description="further options of the runtime; charliecloud's --write-fake makes places to mount at"
    )

    @field_validator("mounts")
    @classmethod
    def _absolute(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for mount in mounts:
            if not mount.startswith("/"):
                raise ValueError(f"must be absolute, as /path or /outside:/inside; {mount!r} is not")
        return mounts


class SlurmProfile(Section):
    """The profile of one Slurm cluster; every key is optional. Options of sbatch keep sbatch's names."""

    runs: str | None = Field(default=None, description="where runs live; on a file system that all nodes share")
    partition: str | None = Field(default=None, description="one partition, or several: a,b")
    account: str | None = Field(default=None, description="whom the time is charged to")
    qos: str | None = Field(default=None, description="quality of service")
    constraint: str | None = Field(default=None, description="features that nodes must have")
    gres: str | None = Field(default=None, description="generic resources a node, where resources.gpus does not say it")
    reservation: str | None = Field(default=None, description="a reservation")
    exclude: str | None = Field(default=None, description="nodes to keep away from")
    exclusive: bool = Field(default=False, description="share nodes with nobody")
    sbatch: dict[str, str | int | bool] = Field(default={}, description="any further option of sbatch, by its long name")
    setup: tuple[str, ...] = Field(default=(), description="lines of the job script before anything starts: module load ...")
    environment: dict[str, str] = Field(default={}, description="variables to set; no secrets")
    python: str | None = Field(
        default=None, description="Python of the agents; unset: that of the submission, in an image python"
    )
    container: Container | None = Field(default=None, description="the image in which agents run")
    interface: str | None = Field(default=None, description="network interface for NCCL and gloo, such as ib0")
    requeue_at_once: bool = Field(default=True, description="end the two minutes that Slurm lets a requeued job wait")

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        plain = {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}
        for name in plain:
            if not _LONG_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no long name of an option of sbatch; it may have small letters, digits and -")
        own = sorted(set(plain) & (OWN_OPTIONS | set(cls.model_fields)))
        if own:
            raise ValueError(f"{own[0]} has a key of its own, here or in the job's resources, or is the job script's to set")
        return plain

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, values: dict[str, str]) -> dict[str, str]:
        check_variables(values, "job scripts are files; export it before you submit")
        return values

    @model_validator(mode="after")
    def _one_word_each(self) -> "SlurmProfile":
        for name, value in self.options.items():
            if re.search(r"[\s#'\"\\]", str(value)):
                raise ValueError(
                    f"the value of {name}, {value!r}, would not survive in an #SBATCH line, which takes no blanks, quotes or #"
                )
        return self

    @property
    def options(self) -> dict[str, str | int | bool]:
        """The options of sbatch, by long name, that say where a job goes."""
        names = ("partition", "account", "qos", "constraint", "gres", "reservation", "exclude", "exclusive")
        found = {name: getattr(self, name) for name in names if getattr(self, name)}
        return {**found, **self.sbatch}
