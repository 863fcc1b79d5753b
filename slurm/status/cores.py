"""How many cores a job with GPUs gets where its resources do not say it: of most clusters one a node, for all its ranks."""

from collections.abc import Sequence

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.profile import SlurmProfile

CORES_A_GPU = 8  # where the cluster does not tell how many it has
SAYS_CORES = ("exclusive", "cpus-per-gpu")  # options of sbatch that a profile may have


def cores_notice(slurm: Slurm, profile: SlurmProfile, resources: Resources) -> str:
    """What to set where a run's nodes would have one core each beside their GPUs; empty where they have more.

    Never raises BackendError.
    """
    if not resources.gpus or resources.cpus or _says_cores(profile):
        return ""
    try:
        a_gpu = cores_a_gpu(slurm, profile, cluster_info.used_partitions(slurm, profile.partition))
    except BackendError:
        a_gpu = CORES_A_GPU
    return few_cores(a_gpu, resources.gpus) if a_gpu is not None else ""


def few_cores(a_gpu: int, gpus: int) -> str:
    """That there is one core a node, and what to set, where a node has so many for each GPU."""
    return (
        "resources.cpus is not set, and Slurm gives a job with GPUs one core a node unless it asks for more;"
        f" set resources.cpus={a_gpu * gpus} with resources.gpus={gpus}"
    )


def cores_a_gpu(slurm: Slurm, profile: SlurmProfile, partitions: Sequence[cluster_info.Partition]) -> int | None:
    """How many cores the partitions' nodes have for each GPU; None where a job gets more than one anyway, or there are no GPUs.

    Raises BackendError.
    """
    if not partitions or _says_cores(profile) or all(one.exclusive or one.gpus_bring_cores for one in partitions):
        return None
    settings = cluster_info.settings(slurm)
    if settings.get("SelectType") == "select/linear" or "DefCpuPerGPU" in settings.get("JobDefaults", ""):
        return None
    nodes = [node for one in partitions for node in cluster_info.nodes(slurm, one.name) if node.gpus]
    return max(1, min(node.cpus // node.gpus for node in nodes)) if nodes else None


def _says_cores(profile: SlurmProfile) -> bool:
    return any(profile.options.get(name) for name in SAYS_CORES)
