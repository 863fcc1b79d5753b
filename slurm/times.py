"""Parses Slurm's time stamps and durations."""

import re
import time

FOREVER = float("inf")
UNSET = ("None", "Unknown", "N/A")  # time stamps that mean "not set"
UNLIMITED = {"UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", ""}


def seconds_of(stamp: str) -> float:
    """Convert a time stamp of Slurm to seconds since the epoch; infinity if it is not set."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return FOREVER


def minutes_of(duration: str) -> float | None:
    """Convert a duration of Slurm, such as 1-00:00:00, 00:10:00 or 30, to minutes; None means no limit."""
    if duration in UNLIMITED or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", duration):
        return None
    days, dash, rest = duration.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60
