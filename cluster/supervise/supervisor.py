"""Supervisor of a run in an allocation: runs attempts until the run has ended, retries are used up, or nodes are lost."""

import logging
import time
from dataclasses import replace
from typing import Any

from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import BY_SUBMISSION, Outcome, RunState
from ropewalk.cluster.supervise.allocation import Allocation
from ropewalk.cluster.supervise.attempt import Attempt, bugs_spent
from ropewalk.cluster.supervise.start_lock import await_start_lock
from ropewalk.cluster.supervise.takeover import agent_starts

log = logging.getLogger(__name__)


def count_spent_retries(run: RunDir) -> tuple[int, int]:
    """Count the (bugs, disturbances) that ended attempts since the run was last submitted or resumed."""
    bugs = disturbances = 0
    for number in reversed(run.attempts()):
        outcome = run.outcome(number)
        if outcome is None and bugs_spent(run, number):
            bugs += run.retries.bugs
        if outcome is not None and not outcome.state.final:
            bugs += outcome.exit_code == EXIT_FAILED
            disturbances += outcome.exit_code != EXIT_FAILED
        if run.attempt_details(number).get("opened_by") == BY_SUBMISSION:
            break
    return bugs, disturbances


class Supervisor:
    """Supervises one run. Retry budgets are computed from the outcomes on disk, so they survive a requeue."""

    def __init__(self, run: RunDir, allocation: Allocation, python: str) -> None:
        self.run, self.allocation, self.python = run, allocation, python

    def supervise(self, number: int) -> int:
        """Run attempts, starting with the open attempt `number`, and return the exit code.

        0: done. 1: failed for good. 85: requeue, since the nodes are wanted back.
        """
        while True:
            outcome = self._run_attempt(number)
            log.info("attempt %d ended: %s (%s)", number, outcome.state, outcome.cause)
            if self.run.attempts()[-1] != number:
                log.error("another supervisor has opened an attempt after %d; leaving the run to it", number)
                return EXIT_FAILED
            if outcome.state.final:
                return EXIT_FAILED if outcome.state.failed else EXIT_DONE
            if not self.allocation.can_retry():
                return EXIT_REQUEUE
            number = self.run.begin_attempt(**inherited_details(self.run, number), opened_by="retry")

    def _run_attempt(self, number: int) -> Outcome:
        retry_bugs = count_spent_retries(self.run)[0] < self.run.retries.bugs
        try:
            if (refusal := await_start_lock(self.run, number, self.allocation)) is not None:
                self.run.write_outcome(number, refusal)
                self.run.event("attempt_ended", attempt=number, state=refusal.state, cause=refusal.cause)
            else:
                Attempt(self.run, number, self.allocation, retry_bugs=retry_bugs, python=self.python).execute()
        except Exception as error:
            cause = f"the {self.allocation.name} backend failed: {type(error).__name__}: {error}"
            if self.run.outcome(number) is None:
                failed = Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause=cause, ended=time.time())
                self.run.write_outcome(number, failed)
            raise
        return end_if_spent(self.run, number)


def end_if_spent(run: RunDir, number: int) -> Outcome:
    """Return the outcome of the newest attempt, changed to FAILED if it exceeds the budget of disturbances."""
    outcome = run.outcome(number)
    assert outcome is not None
    disturbances, allowed = count_spent_retries(run)[1], run.retries.disturbances
    if not outcome.state.final and outcome.exit_code != EXIT_FAILED and disturbances > allowed:
        cause = f"{outcome.cause}; that was disturbance {disturbances}, and retries.disturbances allows {allowed}"
        outcome = replace(outcome, state=RunState.FAILED, cause=cause)
        run.write_outcome(number, outcome)
    return outcome


def inherited_details(run: RunDir, number: int) -> dict[str, Any]:
    """Return the details that the next attempt of a submission inherits: handle, resources, keys of the backend."""
    excluded = {"attempt", "created", "opened_by", "started", "hosts"}
    return {key: value for key, value in run.attempt_details(number).items() if key not in excluded}


def close_unfinished_attempt(run: RunDir, cause: str) -> None:
    """Record an outcome for the newest attempt if its supervisor died without one. Call it before opening the next attempt."""
    attempts = run.attempts()
    if attempts and run.outcome(attempts[-1]) is None:
        started = min((started for _, started in agent_starts(run, attempts[-1])), default=0.0)
        outcome = Outcome(state=RunState.REQUEUED, exit_code=EXIT_TERMINATED, cause=cause, started=started, ended=time.time())
        run.write_outcome(attempts[-1], outcome)
        run.event("attempt_ended", attempt=attempts[-1], state=outcome.state, cause=cause)


def open_attempt(run: RunDir, died: str, **details: Any) -> int | None:
    """Return the attempt to supervise: the submission's, or a new one after a requeue; None if the run has ended.

    `died`: the cause to record for an attempt whose supervisor died without recording an outcome.
    """
    newest = run.attempts()[-1]
    outcome = run.outcome(newest)
    if outcome is not None and outcome.state.final:
        log.info("the run is over: %s", outcome.state)
        return None
    if run.cancel_requested:
        cancelled = Outcome(state=RunState.CANCELLED, exit_code=0, cause="cancelled before it started", ended=time.time())
        run.write_outcome(newest, cancelled)
        return None
    if outcome is None and not agent_starts(run, newest):
        return newest
    close_unfinished_attempt(run, died)
    if end_if_spent(run, newest).state.final:
        return None
    return run.begin_attempt(**{**inherited_details(run, newest), **details}, opened_by="requeue")
