"""What a job's entry is given: its run, its place in the group, and the stop flag."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from cluster.config import JobConfig
from cluster.run.directory import RunDir
from cluster.run.fence import Fence
from cluster.run.heartbeat import Heart

C = TypeVar("C", bound=JobConfig)

STOP_VARIABLE = "ROPEWALK_STOP_FLAG"  # a file on the node's own disk; it exists as soon as the node must stop


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """The one argument of every entry. In the `ray` and `process` engines rank is 0 of 1.

    An entry returns its results (a dict of plain values) or raises: StopRequested after it saved (exit 85),
    a RopewalkError that is not retryable (exit 42), anything else (a bug: counted, then retried).
    """

    run: RunDir
    attempt: int
    group: int = 0  # how often the ranks of this attempt were formed anew
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    stop_flag: Path | None = None
    regroup_flag: Path | None = None  # the same for a node that is about to join or to leave: save, and form anew
    heart_file: Path | None = None  # on the node's own disk, where its agent reads what this rank tells; None: nobody listens
    hung_steps: float | None = None  # as `retries.hung_steps` says

    def config(self, kind: type[C]) -> C:
        """The run's configuration, as the job's own frozen model."""
        return kind.model_validate(self.run.record["config"])

    @property
    def fence(self) -> Fence:
        """The right to write into the run, as long as this group has no successor."""
        return Fence(self.run, self.attempt, self.group)

    @cached_property
    def heart(self) -> Heart:
        """By which a job tells that it goes on. One that never uses it is never taken for hung."""
        return Heart(self.heart_file, self.group, self.hung_steps)

    def stop_requested(self) -> bool:
        """This node was asked to stop. Ranks must agree on it before any of them acts (see `sharding`)."""
        return any(flag is not None and os.path.exists(flag) for flag in (self.stop_flag, self.regroup_flag))
