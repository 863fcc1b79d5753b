"""Sibling runs, one on each cluster of a submission: only the one that gets the start lock may start."""

from ropewalk.cluster.run.directory import RunDir

SIBLINGS = "siblings"  # key of run.yaml: {submission, clusters}; None in its changes: the run has moved since it started
START_LOCK = "start_lock"  # key of requests.json: the cluster whose run may start
REQUESTED = "start_lock_requested"  # event: the run has nodes, and waits
GRANTED = "start_lock_granted"  # event: it starts


def lock_holder(run: RunDir) -> str:
    """Return the cluster whose sibling may start, as far as is known here; empty while that is open."""
    return str(run.requests.get(START_LOCK) or "")


def has_sibling_elsewhere(run: RunDir) -> str:
    """Return the cluster on which a sibling has started in place of this run; empty if there is none."""
    holder = lock_holder(run) if run.record.get(SIBLINGS) else ""
    return "" if holder == run.record.get("cluster") else holder
