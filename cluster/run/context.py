"""`JobContext`, the argument of every job's entry: run, rank, stop flag."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import GroupBrokenError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.group_line import GroupLine
from ropewalk.cluster.run.heartbeat import Heart
from ropewalk.cluster.run.node_memory import NodeMemory
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.cluster.secrets.variables import FOLDER_VARIABLE

C = TypeVar("C", bound=JobConfig)

STOP_VARIABLE = "ROPEWALK_STOP_FLAG"  # file on the node's local disk; it exists as soon as the node must stop
GROUP_VARIABLE = "ROPEWALK_GROUP"  # number of the group of ranks within the attempt
STORE_PREFIX_VARIABLE = "ROPEWALK_STORE_PREFIX"  # secret prefix of the keys in the store in which the ranks of a group meet

# environment variables that belong to one run; not passed on to processes of another run
OWN_VARIABLES = frozenset(
    {STOP_VARIABLE, GROUP_VARIABLE, STORE_PREFIX_VARIABLE, "ROPEWALK_RUN", "ROPEWALK_ATTEMPT", "ROPEWALK_CHECKPOINTS"}
)
OWN_VARIABLES |= {"ROPEWALK_REGROUP_FLAG", "ROPEWALK_STOP_SIGNAL", "ROPEWALK_NODES", "ROPEWALK_NODE_RANK", FOLDER_VARIABLE}
OWN_VARIABLES |= {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """The argument of every entry. In the `ray` and `process` engines the rank is 0 and the world size 1.

    An entry returns its results (a dict of plain values) or raises: StopRequested after it has saved (exit 85), a
    RopewalkError that is not retryable (exit 42), or any other exception (a bug, retried as often as `retries.bugs` allows).
    """

    run: RunDir
    attempt: int
    group: int = 0  # number of this group of ranks within the attempt
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    shared_log: str = ""  # name of the log that the ranks of this node share, if they do
    stop_flag: Path | None = None
    regroup_flag: Path | None = None  # exists when the ranks have to save because a node is about to join or leave
    heart_file: Path | None = None  # file of heartbeats for the agent, on the node's local disk
    hung_seconds: float | None = None  # the key `retries.hung_seconds`
    line: GroupLine | None = None  # to the agent that started this rank
    memory: NodeMemory | None = None  # of the node, for copies of the training state

    def config(self, kind: type[C]) -> C:
        """Return the run's configuration as the job's own frozen model."""
        return kind.model_validate(self.run.record["config"])

    @property
    def fence(self) -> Fence:
        """Right to write into the run, valid as long as this group has no successor."""
        return Fence(self.run, self.attempt, self.group)

    @cached_property
    def heart(self) -> Heart:
        """Heartbeat of the rank. A job that never calls `beat` never counts as hung."""
        return Heart(self.heart_file, self.group, self.hung_seconds)

    @property
    def stays(self) -> bool:
        """True if this process stays for the next group when its group breaks."""
        return self.line is not None and self.line.stays

    @property
    def group_is_over(self) -> bool:
        """True if the agent has ended this group."""
        return self.line is not None and self.line.is_over(self.group)

    def check_group(self) -> None:
        """Raise GroupBrokenError if the agent has ended this group."""
        if self.group_is_over:
            raise GroupBrokenError(f"group {self.group} has ended")

    def enter(self, phase: Phase, step: int) -> None:
        """Tell the agent what this rank does next, which determines how long it may take. Raises GroupBrokenError."""
        self.check_group()
        self.heart.beat(phase, step)

    def stop_requested(self) -> bool:
        """Return True if this rank must save and leave its group. Ranks must agree on it before any acts (see `sharding`)."""
        return self.node_must_stop or (self.regroup_flag is not None and os.path.exists(self.regroup_flag))

    @property
    def node_must_stop(self) -> bool:
        """True if this node has to leave the run, and not only its group."""
        return self.stop_flag is not None and os.path.exists(self.stop_flag)
