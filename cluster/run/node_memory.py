"""Access of a rank to the memory of its node that outlives the rank, in which copies of the training state are kept."""

import os
from dataclasses import dataclass
from pathlib import Path

# folder of a file system in memory, in which each agent makes one for its ranks; a job that needs it sets the variable
MEMORY_VARIABLE = "ROPEWALK_NODE_MEMORY"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the usual value of the variable


def memory_root() -> Path:
    """Return the folder in which the agents of this machine make theirs."""
    return Path(os.environ.get(MEMORY_VARIABLE, SHARED_MEMORY))


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """The memory of a node: a folder of its agent, and the address at which other nodes read and write its files."""

    folder: Path
    address: str  # HOST:PORT
    key: str  # with which both sides of a connection authenticate
    local_rank: int = 0  # of the rank that has access
