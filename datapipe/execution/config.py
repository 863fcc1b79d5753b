"""The key `array` of a job file: array tasks and their resources."""

from pydantic import Field

from ropewalk.cluster.config import Section


class ArrayOptions(Section):
    """How `fanout: array` cuts a pass into array tasks, and what each of them asks for."""

    at_once: int | None = Field(
        default=None,
        ge=1,
        description="array tasks that run at the same time (Slurm's %limit); unset: all; without Slurm: one per CPU",
    )
    jobs: int | None = Field(
        default=None, ge=1, description="array tasks that a pass is cut into; unset: 64 or at_once; without Slurm: at_once"
    )
    minutes: int = Field(
        default=60, ge=1, description="time limit of an array task, minutes; what it leaves undone goes to another"
    )
    cpus: int = Field(
        default=1, ge=1, description="CPU cores of an array task (it uses one; on many clusters more cores mean more memory)"
    )
    memory_gib: float | None = Field(default=None, gt=0, description="memory of an array task, GiB; unset: the cluster's default")
    partition: str | None = Field(default=None, description="Slurm partition of the array; unset: the run's own")
