"""Supervise a run in an allocation: attempt after attempt, until it is done, out of retries, or out of nodes."""

import logging
import time
from dataclasses import replace
from typing import Any

from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import BY_SUBMISSION, Outcome, RunState
from ropewalk.cluster.supervise.allocation import Allocation
from ropewalk.cluster.supervise.attempt import Attempt, bugs_spent

log = logging.getLogger(__name__)


def spent(run: RunDir) -> tuple[int, int]:
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
    """Supervises one run. Budgets are counted from the outcomes on disk, so that a requeue forgets none."""

    def __init__(self, run: RunDir, allocation: Allocation, python: str) -> None:
        self.run, self.allocation, self.python = run, allocation, python

    def supervise(self, number: int) -> int:
        """Run attempts from the open one on; 0 done, 1 failed for good, 85 requeue: the nodes are wanted back."""
        while True:
            outcome = self._run_attempt(number)
            log.info("attempt %d ended: %s (%s)", number, outcome.state, outcome.cause)
            if self.run.attempts()[-1] != number:
                log.error("attempt %d was succeeded by another supervisor's; leaving the run to that", number)
                return EXIT_FAILED
            if outcome.state.final:
                return EXIT_FAILED if outcome.state.failed else EXIT_DONE
            if not self.allocation.can_retry():
                return EXIT_REQUEUE
            number = self.run.begin_attempt(**inherited_details(self.run, number), opened_by="retry")

    def _run_attempt(self, number: int) -> Outcome:
        retry_bugs = spent(self.run)[0] < self.run.retries.bugs
        try:
            Attempt(self.run, number, self.allocation, retry_bugs=retry_bugs, python=self.python).execute()
        except Exception as error:
            cause = f"the {self.allocation.name} backend failed: {type(error).__name__}: {error}"
            if self.run.outcome(number) is None:
                failed = Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause=cause, ended=time.time())
                self.run.write_outcome(number, failed)
            raise
        return end_if_spent(self.run, number)


def end_if_spent(run: RunDir, number: int) -> Outcome:
    """Return the outcome of the newest attempt, made final if the attempt ended by one disturbance too many."""
    outcome = run.outcome(number)
    assert outcome is not None
    disturbances, allowed = spent(run)[1], run.retries.disturbances
    if not outcome.state.final and outcome.exit_code != EXIT_FAILED and disturbances > allowed:
        cause = f"{outcome.cause}; that was disturbance {disturbances}, retries.disturbances allows {allowed}"
        outcome = replace(outcome, state=RunState.FAILED, cause=cause)
        run.write_outcome(number, outcome)
    return outcome


def inherited_details(run: RunDir, number: int) -> dict[str, Any]:
    """Return what the next attempt of a submission inherits from this one: handle, resources, the backend's own keys."""
    own = {"attempt", "created", "opened_by", "started", "hosts"}
    return {key: value for key, value in run.attempt_details(number).items() if key not in own}


def close_unfinished_attempt(run: RunDir, cause: str) -> None:
    """Write the outcome of the newest attempt if its supervisor died before it could; call it before the next one is opened."""
    attempts = run.attempts()
    if attempts and run.outcome(attempts[-1]) is None:
        agents = parse_lines(read_afresh(run.attempt_dir(attempts[-1]) / AGENTS))[0]
        started = min((float(agent.get("started", 0.0)) for agent in agents), default=0.0)
        outcome = Outcome(state=RunState.REQUEUED, exit_code=EXIT_TERMINATED, cause=cause, started=started, ended=time.time())
        run.write_outcome(attempts[-1], outcome)
        run.event("attempt_ended", attempt=attempts[-1], state=outcome.state, cause=cause)


def open_attempt(run: RunDir, died: str, **details: Any) -> int | None:
    """Return the attempt to supervise: that of the submission, or the next after a requeue. None: there is nothing to do.

    `died` is the cause of an attempt whose supervisor died before it could write the outcome.
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
    if outcome is None and not read_afresh(run.attempt_dir(newest) / AGENTS):
        return newest
    close_unfinished_attempt(run, died)
    if end_if_spent(run, newest).state.final:
        return None
    return run.begin_attempt(**{**inherited_details(run, newest), **details}, opened_by="requeue")
