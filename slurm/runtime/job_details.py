"""Interprets `scontrol show job` of the job that this process belongs to: its end, and why Slurm stops it."""

import time
from collections.abc import Mapping

from ropewalk.cluster.spec import StopReason
from ropewalk.slurm.times import UNSET, minutes_of, seconds_of

SLACK_SECONDS = 120.0  # Slurm checks time limits twice a minute and may send the signal up to a minute early
REQUEUED = ("PENDING", "REQUEUED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")


def ends_at(details: Mapping[str, str]) -> float:
    """Return the time at which the time limit ends the job, in seconds since the epoch."""
    return seconds_of(details.get("EndTime", ""))


def is_preempted(details: Mapping[str, str]) -> bool:
    """Return True if Slurm has preempted the job or announced that it will."""
    return details.get("JobState") == "PREEMPTED" or details.get("PreemptTime", "None") not in UNSET


def slurm_stop_reason(details: Mapping[str, str], grace_seconds: float) -> str:
    """Return why Slurm ends the job: preempted, time limit, cancelled or requeued; empty if it does not end it."""
    state = details.get("JobState", "")
    if is_preempted(details):
        return StopReason.PREEMPTED
    if state == "CANCELLED":
        return StopReason.CANCELLED
    if state in REQUEUED:
        return "requeued by Slurm"
    end = ends_at(details)
    if state == "COMPLETING" and end > time.time() + 1:  # a requeued job: its next start comes before this end
        return "requeued by Slurm"
    limit = minutes_of(details.get("TimeLimit", ""))
    reached_limit = limit is not None and end - seconds_of(details.get("StartTime", "")) >= limit * 60 - 1
    if state == "COMPLETING" and not reached_limit:  # Slurm prints CANCELLED only after all processes have ended
        return StopReason.CANCELLED
    if state != "RUNNING" or end - time.time() < grace_seconds + SLACK_SECONDS:
        return StopReason.TIME_LIMIT
    return ""
