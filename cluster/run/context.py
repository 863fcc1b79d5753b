"""What a job's entry is given: its run, its rank in the group, and the stop flag."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.heartbeat import Heart

C = TypeVar("C", bound=JobConfig)

STOP_VARIABLE = "ROPEWALK_STOP_FLAG"  # a file on the node's own disk; it exists as soon as the node must stop
GROUP_VARIABLE = "ROPEWALK_GROUP"  # how often the ranks of this attempt were formed anew

# what a process of a run finds in its environment of that run: not for the processes of another run that it starts
OWN_VARIABLES = frozenset({STOP_VARIABLE, GROUP_VARIABLE, "ROPEWALK_RUN", "ROPEWALK_ATTEMPT", "ROPEWALK_CHECKPOINTS"})
OWN_VARIABLES |= {"ROPEWALK_REGROUP_FLAG", "ROPEWALK_STOP_SIGNAL", "ROPEWALK_NODES", "ROPEWALK_NODE_RANK"}
OWN_VARIABLES |= {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """The one argument of every entry. In the `ray` and `process` engines the rank is 0 of 1.

    An entry returns its results (a dict of plain values) or raises: StopRequested after it saved (exit 85),
    a RopewalkError that is not retryable (exit 42), anything else (a bug: counted, then retried).
    """

    run: RunDir
    attempt: int
    group: int = 0  # the number of this formation of ranks within the attempt
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    stop_flag: Path | None = None
    regroup_flag: Path | None = None  # exists when a node is about to join or to leave: save, and form a new group
    heart_file: Path | None = None  # on the node's own disk, where the agent reads the heartbeat; None: nobody reads it
    hung_steps: float | None = None  # as `retries.hung_steps` says

    def config(self, kind: type[C]) -> C:
        """Return the run's configuration as the job's own frozen model."""
        return kind.model_validate(self.run.record["config"])

    @property
    def fence(self) -> Fence:
        """The right to write into the run, as long as this group has no successor."""
        return Fence(self.run, self.attempt, self.group)

    @cached_property
    def heart(self) -> Heart:
        """The heartbeat by which a job tells that it goes on. A job that never beats is never taken for hung."""
        return Heart(self.heart_file, self.group, self.hung_steps)

    def stop_requested(self) -> bool:
        """Return whether this node was asked to stop. Ranks must agree on it before any of them acts (see `sharding`)."""
        return any(flag is not None and os.path.exists(flag) for flag in (self.stop_flag, self.regroup_flag))
