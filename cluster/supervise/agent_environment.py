"""Environment variables of an agent: its node's share of cores and GPUs, and the Ray token."""

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
    """Return the variables of an agent whose node has `cpus` cores and `gpus` GPUs (default: as many as the run requests).

    Ranks divide the cores of their node among them, unless the user has set OMP_NUM_THREADS. Ray limits the threads of its
    workers itself, and a single process may use all cores. Without a token, no variables of Ray are set.
    """
    values = {NODE_CPUS_VARIABLE: str(cpus), NODE_GPUS_VARIABLE: str(resources.gpus if gpus is None else gpus)}
    if ray_token:
        values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_token}
    if Engine(run.record["engine"]) is Engine.RANKS and THREADS_VARIABLE not in os.environ:
        # a scheduler may report more cores than the machine has
        values[THREADS_VARIABLE] = str(max(1, min(cpus, os.cpu_count() or cpus) // resources.local_world_size))
    return values
