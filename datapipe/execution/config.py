"""The key `array` of a job file."""

from pydantic import Field

from ropewalk.cluster.section import Section


class ArrayOptions(Section):
    """Number and resources of the array tasks of `fanout: array`."""

    at_once: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of array tasks that run at once (Slurm's %limit); unset: all; without Slurm: one per CPU",
    )
    jobs: int | None = Field(
        default=None, ge=1, description="number of array tasks per pass; unset: 64 or at_once; without Slurm: at_once"
    )
    minutes: int = Field(
        default=60, ge=1, description="time limit of an array task, minutes; another task continues its unfinished work"
    )
    cpus: int = Field(
        default=1, ge=1, description="CPU cores per array task (it uses one; on many clusters more cores mean more memory)"
    )
    memory_gib: float | None = Field(default=None, gt=0, description="memory per array task, GiB; unset: the cluster's default")
    partition: str | None = Field(default=None, description="Slurm partition of the array; unset: the run's own")
