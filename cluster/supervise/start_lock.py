"""Wait of an attempt for the start lock, if its run is one of several siblings."""

import logging
import time

from ropewalk.cluster.errors import EXIT_DONE, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import PollTimer
from ropewalk.cluster.run.siblings import GRANTED, REQUESTED, SIBLINGS, lock_holder
from ropewalk.cluster.spec import Outcome, RunState, StopReason
from ropewalk.cluster.supervise.allocation import Allocation

log = logging.getLogger(__name__)

ANSWER_SECONDS = 600.0  # the nodes are idle meanwhile
POLL_SECONDS = 0.1
NO_ANSWER = (
    f"no `ropewalk sync --follow` answered within {ANSWER_SECONDS / 60:.0f} minutes whether this run may start; start that on the"
    " machine from which it was submitted, and `ropewalk resume` the run"
)


def await_start_lock(run: RunDir, number: int, allocation: Allocation) -> Outcome | None:
    """Ask for the start lock and wait for it. Return None when the attempt may start, or its outcome if it may not."""
    if not run.record.get(SIBLINGS) or ((holder := lock_holder(run)) and holder.cluster == run.record["cluster"]):
        return None
    started = time.time()
    run.event(REQUESTED, attempt=number)
    log.info("waiting until this run may start in place of its siblings")
    state, code, cause = _wait(run, allocation)
    if state is RunState.RUNNING:
        run.event(GRANTED, attempt=number)
        return None
    return Outcome(state=state, exit_code=code, cause=cause, started=started, ended=time.time())


def _wait(run: RunDir, allocation: Allocation) -> tuple[RunState, int, str]:
    """Return the state of the attempt after the wait, with an exit code and a cause."""
    deadline, timer = time.monotonic() + ANSWER_SECONDS, PollTimer(run.path)
    while True:
        if timer.due():
            holder = lock_holder(run)
            if holder and holder.cluster != run.record["cluster"]:
                return RunState.CANCELLED, EXIT_DONE, f"{holder.run} has started on {holder.cluster} instead"
            if run.cancel_requested:
                return RunState.CANCELLED, EXIT_DONE, "cancelled before it started"
            if holder:
                return RunState.RUNNING, EXIT_DONE, ""
        if reason := allocation.stop_reason():
            state = RunState.PREEMPTED if reason == StopReason.PREEMPTED else RunState.REQUEUED
            return state, EXIT_REQUEUE, f"stopped: {reason}"
        if time.monotonic() > deadline:
            return RunState.FAILED, EXIT_NEVER_RETRY, NO_ANSWER
        time.sleep(POLL_SECONDS)
