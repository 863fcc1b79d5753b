"""What Slurm says of the job that this process is part of: when it ends, and why it is taken away."""

import re
import time
from collections.abc import Mapping

from cluster.spec import StopReason

FOREVER = float("inf")
UNSET = ("None", "Unknown", "N/A")  # a time that is none
SLACK_SECONDS = 120.0  # the signal before the time limit may come a minute early, and is looked for twice a minute
REQUEUED = ("PENDING", "REQUEUED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")


def seconds_of(stamp: str) -> float:
    """Slurm's time stamp as seconds since the epoch; none yet is infinity."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return FOREVER


def duration_of(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds as seconds; UNLIMITED is infinity."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return FOREVER
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def ends_at(details: Mapping[str, str]) -> float:
    """When its time limit ends the job, seconds since the epoch."""
    return seconds_of(details.get("EndTime", ""))


def preempted(details: Mapping[str, str]) -> bool:
    """Slurm has preempted the job, or given it notice of that."""
    return details.get("JobState") == "PREEMPTED" or details.get("PreemptTime", "None") not in UNSET


def why_taken(details: Mapping[str, str], grace_seconds: float) -> str:
    """Why Slurm ends the job, of `scontrol show job`: preempted, time limit, cancelled, requeued; empty if it does not."""
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
    ran_out = end - seconds_of(details.get("StartTime", "")) >= duration_of(details.get("TimeLimit", "")) - 1
    if state == "COMPLETING" and not ran_out:  # the text never says CANCELLED before all has left
        return StopReason.CANCELLED
    if state != "RUNNING" or end - time.time() < grace_seconds + SLACK_SECONDS:
        return StopReason.TIME_LIMIT
    return ""
