"""Slurm's time stamps and durations, read."""

import re
import time

FOREVER = float("inf")
UNSET = ("None", "Unknown", "N/A")  # a time that is none
UNLIMITED = {"UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", ""}


def seconds_of(stamp: str) -> float:
    """Slurm's time stamp as seconds since the epoch; infinity for a time that is not set."""
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return FOREVER


def minutes_of(words: str) -> float | None:
    """Slurm's duration, such as 1-00:00:00, 00:10:00 or 30, in minutes; None: no limit."""
    if words in UNLIMITED or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", words):
        return None
    days, dash, rest = words.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60
