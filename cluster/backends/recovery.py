"""States of runs according to their files, and outcomes of attempts whose processes died before they could record one."""

import time
from contextlib import suppress
from dataclasses import replace

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.submission import PATIENCE_SECONDS
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_TERMINATED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import Outcome, RunState

SETTLE_SECONDS = 15.0  # an outcome that was just written may appear late on a shared file system
NO_ANSWER = "no answer"  # `BackendState.word` if the scheduler does not answer


def has_agents(run: RunDir) -> bool:
    """Return True if an agent of the run's newest attempt has ever started."""
    attempts = run.attempts()
    return bool(attempts) and bool(read_lines(run.attempt_dir(attempts[-1]) / AGENTS))


def state_from_files(run: RunDir, error: str) -> BackendState:
    """Return the state according to the run's files, for a scheduler that does not answer (`error`)."""
    outcome, reason = run.last_outcome(), f"{error}; the state is taken from the run's files"
    if outcome is not None:
        return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word=NO_ANSWER, reason=reason)
    return BackendState(state=RunState.RUNNING if has_agents(run) else RunState.PENDING, word=NO_ANSWER, reason=reason)


def unsubmitted_state(run: RunDir) -> BackendState:
    """Return the state of a run without an attempt: its submission is in progress or was interrupted."""
    if time.time() - float(run.record.get("created") or 0) < PATIENCE_SECONDS:
        return BackendState(state=RunState.PENDING, word="submitting")
    remedy = f"run `ropewalk resume {run.id}`"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"the submission did not finish; {remedy}", remedy=remedy)


def lost_state(run: RunDir, cause: str) -> BackendState:
    """Return the state of a run whose job is gone and left no outcome; `cause` is a sentence about the job."""
    remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint, if there is one"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{cause}; {remedy}", remedy=remedy)


def missing_outcome(run: RunDir, state: RunState, cause: str) -> Outcome:
    """Return the outcome of a run whose processes recorded none, with the cause of an earlier outcome. Writes nothing."""
    before = run.last_outcome()
    if before is not None:
        return replace(before, state=state, cause=f"{before.cause}; then: {cause}")
    code = EXIT_FAILED if state is RunState.FAILED else EXIT_TERMINATED
    return Outcome(state=state, exit_code=code, cause=cause, ended=time.time())


def record_missing_outcome(run: RunDir, state: RunState, cause: str) -> Outcome:
    """Record and return the outcome of a run whose processes recorded none, with the cause of an earlier outcome."""
    outcome = missing_outcome(run, state, cause)
    with suppress(OSError):  # a user who views another user's runs may not write there
        run.write_outcome(run.attempts()[-1], outcome)
    return outcome
