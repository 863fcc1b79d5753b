"""What every agent finds in its environment: its node's share of cores and GPUs, and the token of its Ray."""

import os

from ropewalk.cluster.config import Resources
from ropewalk.cluster.gpus import NODE_GPUS_VARIABLE
from ropewalk.cluster.process.ports import NODE_CPUS_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Engine

THREADS_VARIABLE = "OMP_NUM_THREADS"


def agent_environment(
    run: RunDir, resources: Resources, *, cpus: int, gpus: int | None = None, ray_token: str = ""
) -> dict[str, str]:
    """Return the variables of an agent whose node has `cpus` cores and `gpus` GPUs (unset: those that the run asks for).

    Ranks share the cores of their node, unless the user has set a number of threads. Ray limits the threads of its workers
    itself, and a single process may use all cores. Without a token nothing is said about Ray.
    """
    values = {NODE_CPUS_VARIABLE: str(cpus), NODE_GPUS_VARIABLE: str(resources.gpus if gpus is None else gpus)}
    if ray_token:
        values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_token}
    if Engine(run.record["engine"]) is Engine.RANKS and THREADS_VARIABLE not in os.environ:
        # a scheduler may count more cores than there are
        values[THREADS_VARIABLE] = str(max(1, min(cpus, os.cpu_count() or cpus) // resources.local_world_size))
    return values
