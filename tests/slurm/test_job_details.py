"""Reasons why Slurm takes a job away, parsed from `scontrol show job`."""

import time

import pytest

from ropewalk.slurm.runtime.job_details import slurm_stop_reason


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


def details(
    state: str = "RUNNING", start: float = -600, end: float = 3000, limit: str = "01:00:00", preempt: str = "None"
) -> dict[str, str]:
    return {"JobState": state, "StartTime": stamp(start), "EndTime": stamp(end), "TimeLimit": limit, "PreemptTime": preempt}


@pytest.mark.parametrize(
    ("expected", "meaning"),
    [
        (details(), ""),
        (details(limit="UNLIMITED") | {"EndTime": "Unknown"}, ""),
        (details(preempt=stamp(-1)), "preempted"),
        (details("PREEMPTED"), "preempted"),
        (details("CANCELLED"), "cancelled"),
        (details("COMPLETING", end=0), "cancelled"),
        (details("COMPLETING", start=-3600, end=0), "time limit"),
        (details("COMPLETING", start=2, end=3602), "requeued by Slurm"),
        (details("COMPLETING") | {"StartTime": "Unknown", "EndTime": "Unknown"}, "requeued by Slurm"),
        (details("PENDING"), "requeued by Slurm"),
        (details(end=100), "time limit"),
        (details("TIMEOUT", end=0), "time limit"),
    ],
)
def test_why_taken(expected: dict[str, str], meaning: str) -> None:
    assert slurm_stop_reason(expected, grace_seconds=20) == meaning
