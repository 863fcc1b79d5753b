"""Decides who requeues a preempted job: Slurm, as soon as its script exits, or the script itself.

Slurm marks a job when it announces a preemption (GraceTime) and clears the mark only if it requeues the job itself. A job that
requeues itself with `scontrol requeue` keeps the mark: when it finally completes, Slurm takes that for another preemption,
queues the job again for all its nodes, and leaves `afterok` dependencies waiting (src/slurmctld, 24.11 to 26.05: GRACE_PREEMPT).
"""

import logging

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.runtime.job_details import is_preempted

log = logging.getLogger(__name__)

DEFAULT_MAX_REQUEUES = "5"  # Slurm's default of MaxBatchRequeue


def slurm_requeues(slurm: Slurm, job: str) -> bool:
    """Return True if Slurm requeues this job once its script exits; False if that cannot be determined."""
    try:
        details = slurm.job_details(job)
        if details.get("JobState") != "RUNNING" or details.get("Requeue") != "1" or not is_preempted(details):
            return False
        settings = cluster_info.settings(slurm)
        return _has_requeues_left(details, settings) and "REQUEUE" in _preempt_mode(slurm, details, settings).upper()
    except (BackendError, ValueError, IndexError) as error:
        log.warning("cannot determine who requeues this job: %s", error)
        return False


def _has_requeues_left(details: dict[str, str], settings: dict[str, str]) -> bool:
    """Return True if Slurm may requeue the job once more. Beyond MaxBatchRequeue it holds the job instead.

    A requeue is reserved for the end of the job, in case the mark is still set then.
    """
    most = int(settings.get("MaxBatchRequeue", DEFAULT_MAX_REQUEUES).split()[0])
    return int(details.get("BatchFlag", DEFAULT_MAX_REQUEUES)) < most - 1


def _preempt_mode(slurm: Slurm, details: dict[str, str], settings: dict[str, str]) -> str:
    """Return the preemption mode that applies to the job: that of its partition or QoS, else the cluster's."""
    cluster, kind = settings.get("PreemptMode", "OFF"), settings.get("PreemptType", "")
    if kind.endswith("partition_prio"):
        modes = {partition.name: partition.preempt_mode for partition in cluster_info.partitions(slurm)}
        return modes.get(details.get("Partition", ""), "OFF")
    if kind.endswith("qos"):
        mode = cluster_info.preempt_mode_of_qos(slurm, details.get("QOS", ""))
        return cluster if mode.lower() in {"", "off", "cluster"} else mode
    return "OFF"
