"""Sockets of a group of ranks: connections made when they are first used, and a limit of open files that allows them."""

import os
import resource

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.text import counted

LAZY_VARIABLE = "TORCH_GLOO_LAZY_INIT"  # torch then connects two ranks when they first exchange something
OWN_FILES = 256  # of a rank besides its connections: logs, libraries, pipes
SHARD_FILES = 1000  # open at most; a lower limit is enough for fewer shards
CONNECTIONS = 64  # of a rank that does not serve the store, in a group of any size


def prepare_sockets(rank: int, world_size: int) -> None:
    """Let this rank connect lazily, and to as many ranks as it must. Call before the group forms.

    Rank 0 serves the store, to which each rank has two connections, and gathers values of all ranks. Raises ConfigError if the
    hard limit of open files is too low.
    """
    if world_size == 1:
        return
    os.environ.setdefault(LAZY_VARIABLE, "1")
    number = OWN_FILES + (3 * world_size if rank == 0 else min(3 * world_size, CONNECTIONS))
    limit = raise_open_files(number + SHARD_FILES)
    if limit < number:
        raise ConfigError(
            f"rank {rank} of {counted(world_size, 'rank')} needs {number} open files, and the hard limit on its node is {limit}:"
            f" raise it (ulimit -Hn {number}; LimitNOFILE of the service or ulimits of the container), or start fewer ranks"
        )


def raise_open_files(number: int) -> int:
    """Raise the soft limit of open files to `number`, as far as the hard limit allows, and return the resulting limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return number
    limit = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(soft, limit)
