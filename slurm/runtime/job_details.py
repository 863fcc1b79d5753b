"""What Slurm says of the job that this process is part of: when it ends, and why it is taken away."""

import time
from collections.abc import Mapping

from ropewalk.cluster.spec import StopReason
from ropewalk.slurm.times import UNSET, minutes_of, seconds_of

SLACK_SECONDS = 120.0  # the signal before the time limit may come a minute early, and is looked for twice a minute
REQUEUED = ("PENDING", "REQUEUED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")


def ends_at(details: Mapping[str, str]) -> float:
    """When the job's time limit ends it, in seconds since the epoch."""
    return seconds_of(details.get("EndTime", ""))


def preempted(details: Mapping[str, str]) -> bool:
    """Whether Slurm has preempted the job, or given it notice of that."""
    return details.get("JobState") == "PREEMPTED" or details.get("PreemptTime", "None") not in UNSET


def why_taken(details: Mapping[str, str], grace_seconds: float) -> str:
    """Why Slurm ends the job, by `scontrol show job`: preempted, time limit, cancelled or requeued; empty: it does not."""
    state = details.get("JobState", "")
    if preempted(details):
        return StopReason.PREEMPTED
    if state == "CANCELLED":
        return StopReason.CANCELLED
    if state in REQUEUED:
        return "requeued by Slurm"
    end = ends_at(details)
    if state == "COMPLETING" and end > time.time() + 1:  # it has a new start before it
        return "requeued by Slurm"
    limit = minutes_of(details.get("TimeLimit", ""))
    ran_out = limit is not None and end - seconds_of(details.get("StartTime", "")) >= limit * 60 - 1
    if state == "COMPLETING" and not ran_out:  # the text never says CANCELLED before all has left
        return StopReason.CANCELLED
    if state != "RUNNING" or end - time.time() < grace_seconds + SLACK_SECONDS:
        return StopReason.TIME_LIMIT
    return ""
