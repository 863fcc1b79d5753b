"""Who requeues a job that is preempted: Slurm itself as soon as its script leaves, or nobody, so that the script has to.

Slurm marks a job that it gives notice of a preemption (GraceTime), and takes the mark away only where it requeues the job
itself. A job that requeues itself by `scontrol requeue` keeps it: when its work is done at last, Slurm takes the end for one
more preemption, queues it once more for all its nodes, and lets `afterok` wait (src/slurmctld, 24.11 to 26.05: GRACE_PREEMPT).
"""

import logging

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.runtime.job_details import preempted

log = logging.getLogger(__name__)

MOST_REQUEUES = "5"  # Slurm's own default of MaxBatchRequeue


def slurm_requeues(slurm: Slurm, job: str) -> bool:
    """Whether Slurm itself requeues this job if its script ends now; in doubt the answer is no."""
    try:
        details = slurm.job_details(job)
        if details.get("JobState") != "RUNNING" or details.get("Requeue") != "1" or not preempted(details):
            return False
        settings = cluster_info.settings(slurm)
        return _has_requeues_left(details, settings) and "REQUEUE" in _mode(slurm, details, settings).upper()
    except (BackendError, ValueError, IndexError) as error:
        log.warning("cannot ask who requeues this job: %s", error)
        return False


def _has_requeues_left(details: dict[str, str], settings: dict[str, str]) -> bool:
    """Whether Slurm may requeue the job once more: it holds a job that it has requeued too often.

    One requeue is kept for the job's end, should the mark be left after all.
    """
    most = int(settings.get("MaxBatchRequeue", MOST_REQUEUES).split()[0])
    return int(details.get("BatchFlag", MOST_REQUEUES)) < most - 1


def _mode(slurm: Slurm, details: dict[str, str], settings: dict[str, str]) -> str:
    """What Slurm does to the job when it preempts it: the mode of its partition or QoS, else the cluster's."""
    cluster, kind = settings.get("PreemptMode", "OFF"), settings.get("PreemptType", "")
    if kind.endswith("partition_prio"):
        found = {partition.name: partition.preempt_mode for partition in cluster_info.partitions(slurm)}
        return found.get(details.get("Partition", ""), "OFF")
    if kind.endswith("qos"):
        own = cluster_info.preempt_mode_of_qos(slurm, details.get("QOS", ""))
        return cluster if own.lower() in {"", "off", "cluster"} else own
    return "OFF"
