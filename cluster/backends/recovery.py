"""What a run's own files tell where its scheduler cannot, and an end written down that nobody lived to write."""

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

SETTLE_SECONDS = 15.0  # what has ended may have left its outcome on a file system that shows it late
NO_ANSWER = "no answer"  # in the place of a scheduler's word, where it has none


def has_agents(run: RunDir) -> bool:
    """Whether an agent of the run's newest attempt has ever started."""
    attempts = run.attempts()
    return bool(attempts) and bool(read_lines(run.attempt_dir(attempts[-1]) / AGENTS))


def last_known(run: RunDir, error: str) -> BackendState:
    """The state that the run's own files tell, where its scheduler does not answer."""
    outcome, reason = run.last_outcome(), f"{error}; this is the last that its files tell"
    if outcome is not None:
        return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word=NO_ANSWER, reason=reason)
    return BackendState(state=RunState.RUNNING if has_agents(run) else RunState.PENDING, word=NO_ANSWER, reason=reason)


def never_submitted(run: RunDir) -> BackendState:
    """The state of a run without an attempt: it is being submitted, or whoever was submitting it has died."""
    if time.time() - float(run.record.get("created") or 0) < PATIENCE_SECONDS:
        return BackendState(state=RunState.PENDING, word="submitting")
    remedy = f"run `ropewalk resume {run.id}`"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"the submission did not finish; {remedy}", remedy=remedy)


def lost(run: RunDir, said: str) -> BackendState:
    """The state of a run whose job is gone, `said` in words, and that left no outcome."""
    remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint, if there is one"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{said}; {remedy}", remedy=remedy)


def end_without_word(run: RunDir, state: RunState, cause: str) -> Outcome:
    """The outcome of a run whose own processes could not write one; what an earlier outcome said is kept. Writes nothing."""
    before = run.last_outcome()
    if before is not None:
        return replace(before, state=state, cause=f"{before.cause}; then: {cause}")
    code = EXIT_FAILED if state is RunState.FAILED else EXIT_TERMINATED
    return Outcome(state=state, exit_code=code, cause=cause, ended=time.time())


def conclude(run: RunDir, state: RunState, cause: str) -> Outcome:
    """Write down how a run ended whose own processes could not; what an earlier outcome said is kept."""
    outcome = end_without_word(run, state, cause)
    with suppress(OSError):  # who looks at another's runs may not be allowed to write there
        run.write_outcome(run.attempts()[-1], outcome)
    return outcome
