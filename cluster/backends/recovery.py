"""What all schedulers' backends share: how a submission is known, and what a run's own files tell where nobody else does."""

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster.backends.base import BackendState
from cluster.config import Resources
from cluster.errors import EXIT_FAILED, EXIT_TERMINATED, ConfigError
from cluster.run.directory import RunDir
from cluster.run.files import read_lines
from cluster.spec import Outcome, RunState
from cluster.supervise.allocation import AGENTS
from cluster.supervise.supervisor import BY_SUBMISSION

PATIENCE_SECONDS = 120.0  # a controller that restarts takes some seconds, a failover a minute
SETTLE_SECONDS = 15.0  # what has ended may have left its outcome on a file system that shows it late


NO_ANSWER = "no answer"  # in the place of a scheduler's word, where it has none


def key_of(run: RunDir, attempt: int) -> str:
    """What makes a submission known: a second one with the same key is the same."""
    return f"ropewalk:{run.id}:{attempt}"


def newest_submission(run: RunDir) -> tuple[int, dict[str, Any]]:
    """The attempt that the newest submission opened, and what it wrote down; retries and requeues open others after it.

    (0, {}): there is none.
    """
    attempts = run.attempts()
    for number in reversed(attempts):
        details = run.attempt_details(number)
        if details.get("opened_by") == BY_SUBMISSION:
            return number, details
    return (attempts[0], run.attempt_details(attempts[0])) if attempts else (0, {})


def submission_details(run: RunDir) -> dict[str, Any]:
    """What the newest submission wrote down: key, profile, resources, and the backend's own keys."""
    return newest_submission(run)[1]


def dependencies(run: RunDir) -> list[RunDir]:
    """The runs for whose success the newest submission of this one waits, or has waited."""
    return [RunDir(run.path.parent / name) for name in submission_details(run).get("after") or []]


def failed_dependencies(run: RunDir) -> list[tuple[RunDir, Outcome]]:
    """Of the runs that this one waits for, those that ended without success, each with its outcome."""
    ended = [(other, other.last_outcome()) for other in dependencies(run)]
    return [(other, o) for other, o in ended if o is not None and o.state.final and o.state is not RunState.SUCCEEDED]


def refuse_short_limit(resources: Resources) -> None:
    """Refuse what a scheduler would accept, and what would never get to work. Raises ConfigError."""
    limit = resources.time_limit_minutes
    if limit and limit * 60 <= resources.grace_seconds:
        raise ConfigError(
            f"resources.time_limit_minutes: {limit:g} is no longer than resources.grace_seconds ({resources.grace_seconds:g});"
            " the run would be told to stop as it starts: a longer limit, or less notice"
        )


def has_agents(run: RunDir) -> bool:
    """Whether the newest attempt has begun."""
    attempts = run.attempts()
    return bool(attempts) and bool(read_lines(run.attempt_dir(attempts[-1]) / AGENTS))


def last_known(run: RunDir, error: str) -> BackendState:
    """The state that the run's own files tell, where its scheduler does not answer."""
    outcome, reason = run.last_outcome(), f"{error}; this is the last that its files tell"
    if outcome is not None:
        return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word=NO_ANSWER, reason=reason)
    return BackendState(state=RunState.RUNNING if has_agents(run) else RunState.PENDING, word=NO_ANSWER, reason=reason)


def never_submitted(run: RunDir) -> BackendState:
    """Of a run that no attempt of is open: it is being submitted, or whoever did so has died."""
    if time.time() - float(run.listed.get("created") or 0) < PATIENCE_SECONDS:
        return BackendState(state=RunState.PENDING, word="submitting")
    remedy = f"run `ropewalk resume {run.id}`"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"the submission did not finish; {remedy}", remedy=remedy)


def lost(run: RunDir, said: str) -> BackendState:
    """Nothing is left of what carried the run, and it left no word."""
    remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint, if there is one"
    return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{said}; {remedy}", remedy=remedy)


def end_without_word(run: RunDir, state: RunState, cause: str) -> Outcome:
    """The outcome of a run whose end nobody lived to write; what an earlier outcome said is kept. Writes nothing."""
    before = run.last_outcome()
    if before is not None:
        return replace(before, state=state, cause=f"{before.cause}; then: {cause}")
    code = EXIT_FAILED if state is RunState.FAILED else EXIT_TERMINATED
    return Outcome(state=state, exit_code=code, cause=cause, ended=time.time())


def conclude(run: RunDir, state: RunState, cause: str) -> Outcome:
    """Write down the end of a run that nobody lived to write; what an earlier outcome said is kept."""
    outcome = end_without_word(run, state, cause)
    with suppress(OSError):  # who looks at another's runs may not be allowed to write there
        run.write_outcome(run.attempts()[-1], outcome)
    return outcome
