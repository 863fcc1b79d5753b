"""Runs that have moved to another cluster: the attempt that locks out the place which they left."""

import time

from ropewalk.cluster.errors import EXIT_DONE
from ropewalk.cluster.run.attempts import begin_attempts
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState

MOVED_TO = "moved_to"  # key of attempt.json: the cluster to which the run has moved
MOVED_FROM = "moved_from"  # key of run.yaml's changes: the cluster from which it came last
MOVING_TO = "moving_to"  # key of requests.json: the run ends in order to move


def departed_to(run: RunDir) -> str:
    """Return the cluster to which a run was to move last, if it has no attempt there yet that is known here; else empty."""
    attempts = run.attempts()
    return str(run.attempt_details(attempts[-1]).get(MOVED_TO, "")) if attempts else ""


def moved_to(run: RunDir) -> str:
    """Return the cluster to which a run has moved from here; empty if it is here."""
    cluster = departed_to(run)
    return "" if cluster == run.record.get("cluster") else cluster


def leave(run: RunDir, cluster: str) -> int:
    """Lock out all earlier attempts by one that only says where the run has moved, and return its number.

    A repetition after a crash finishes what was begun. Attempts on the other cluster have higher numbers.
    """
    if not departed_to(run):
        details = {MOVED_TO: cluster, "opened_by": "move", "resources": run.resources().model_dump(mode="json")}
        begin_attempts([run.path], [details])
        run.event("moved", to=cluster)
    number = run.attempts()[-1]
    if run.outcome(number) is None:
        cause = f"moved to {cluster}"
        outcome = Outcome(state=RunState.CANCELLED, exit_code=EXIT_DONE, cause=cause, ended=time.time())
        run.write_outcome(number, outcome)
    return number
