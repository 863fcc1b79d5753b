"""What Slurm says of the job that this process is part of: when it ends, and why it is taken away."""

import time
from collections.abc import Mapping

FOREVER = float("inf")
SLACK_SECONDS = 120.0  # the signal before the time limit may come a minute early, and is looked for twice a minute
GONE = ("CANCELLED", "PENDING", "REQUEUED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "BOOT_FAIL", "REVOKED")


def seconds_of(stamp: str) -> float:
    """Slurm's time stamp as seconds since the epoch; none yet is infinity."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return FOREVER


def ends_at(details: Mapping[str, str]) -> float:
    """When its time limit ends the job, seconds since the epoch."""
    return seconds_of(details.get("EndTime", ""))


def why_taken(details: Mapping[str, str], grace_seconds: float) -> str:
    """Why Slurm ends the job, of `scontrol show job`: preempted, time limit, cancelled, requeued; empty if it does not."""
    state = details.get("JobState", "")
    preempted = details.get("PreemptTime", "None")
    if preempted not in {"None", "Unknown", ""}:
        return "preempted"
    if state == "CANCELLED":
        return "cancelled"
    if state == "PREEMPTED":
        return "preempted"
    if state in GONE or (state == "COMPLETING" and details.get("RunTime") == "00:00:00"):
        return "requeued by Slurm"
    if ends_at(details) - time.time() < grace_seconds + SLACK_SECONDS:
        return "time limit"
    return ""
