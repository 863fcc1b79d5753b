"""Sibling runs, one on each cluster of a submission: only the one that gets the start lock may start."""

from typing import NamedTuple

from ropewalk.cluster.run.directory import RunDir

SIBLINGS = "siblings"  # key of run.yaml: {submission, clusters}; None in its changes: the run has moved since it started
START_LOCK = "start_lock"  # key of requests.json: cluster and run that may start
REQUESTED = "start_lock_requested"  # event: the run has nodes, and waits
GRANTED = "start_lock_granted"  # event: it starts


class Sibling(NamedTuple):
    """A run of a submission to several clusters."""

    cluster: str
    run: str


def lock_holder(run: RunDir) -> Sibling | None:
    """Return the sibling that may start, as far as is known here; None while that is open."""
    holder = run.requests.get(START_LOCK)
    return Sibling(*holder) if holder else None


def sibling_elsewhere(run: RunDir) -> Sibling | None:
    """Return the sibling that has started in place of this run; None if there is none."""
    holder = lock_holder(run) if run.record.get(SIBLINGS) else None
    return holder if holder and holder.cluster != run.record.get("cluster") else None


def awaits_start_lock(run: RunDir) -> bool:
    """Return True if the run has nodes, and may not start yet."""
    events = [event["event"] for event in run.read_events()] if run.record.get(SIBLINGS) else []
    return REQUESTED in events and GRANTED not in events


def is_first_sibling(run: RunDir) -> bool:
    """Return True for a run that has no siblings, or was submitted before them."""
    siblings = run.record.get(SIBLINGS)
    return not siblings or siblings["clusters"][0] == run.record["cluster"]
