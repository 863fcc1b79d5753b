"""CPU cores of jobs with GPUs that do not set resources.cpus: on most clusters a single core per node for all ranks."""

from collections.abc import Sequence

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.profile import SlurmProfile

DEFAULT_CORES_PER_GPU = 8  # if the cluster cannot be queried
CORE_OPTIONS = ("exclusive", "cpus-per-gpu")  # options of sbatch that give a job more cores


def cores_notice(slurm: Slurm, profile: SlurmProfile, resources: Resources) -> str:
    """Return advice on resources.cpus if nodes with GPUs would have one core, else an empty string. Never raises BackendError."""
    if not resources.gpus or resources.cpus or _sets_cores(profile):
        return ""
    try:
        per_gpu = cores_per_gpu(slurm, profile, cluster_info.used_partitions(slurm, profile.partition))
    except BackendError:
        per_gpu = DEFAULT_CORES_PER_GPU
    return cores_advice(per_gpu, resources.gpus) if per_gpu is not None else ""


def cores_advice(per_gpu: int, gpus: int) -> str:
    """Return the sentence that a job gets one core per node, and the value to set instead."""
    return (
        "resources.cpus is not set, and Slurm gives a job with GPUs one core a node unless it asks for more;"
        f" set resources.cpus={per_gpu * gpus} with resources.gpus={gpus}"
    )


def cores_per_gpu(slurm: Slurm, profile: SlurmProfile, partitions: Sequence[cluster_info.Partition]) -> int | None:
    """Return the cores per GPU; None without GPUs, or if jobs get more than one core anyway. Raises BackendError."""
    if not partitions or _sets_cores(profile) or all(p.exclusive or p.gpus_bring_cores for p in partitions):
        return None
    settings = cluster_info.settings(slurm)
    if settings.get("SelectType") == "select/linear" or "DefCpuPerGPU" in settings.get("JobDefaults", ""):
        return None
    nodes = [node for partition in partitions for node in cluster_info.nodes(slurm, partition.name) if node.gpus]
    return max(1, min(node.cpus // node.gpus for node in nodes)) if nodes else None


def _sets_cores(profile: SlurmProfile) -> bool:
    return any(profile.options.get(name) for name in CORE_OPTIONS)
