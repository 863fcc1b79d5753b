"""What the submissions of all schedulers share: their key, when one must not begin, and what is done while nobody answers."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    AlreadyRunningError,
    BackendError,
    ConfigError,
    SchedulerAwayError,
    SubmissionInDoubtError,
)
from ropewalk.cluster.run.attempts import begin_attempts
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import BY_SUBMISSION, Outcome, RunState

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 120.0  # a controller that restarts takes some seconds, a failover a minute
PAUSE_SECONDS = 1.0


def key_of(run: RunDir, attempt: int) -> str:
    """The idempotency key of the submission that opens an attempt: a second submission with the same key is the same one."""
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


def next_attempt(run: RunDir) -> int:
    """The number of the attempt that a submission of the run opens."""
    return (run.attempts() or [0])[-1] + 1


def is_over(run: RunDir) -> bool:
    """Whether the run has ended for good, by its own files."""
    outcome = run.last_outcome()
    return outcome is not None and outcome.state.final


# --- what a run waits for


def dependencies(run: RunDir) -> list[RunDir]:
    """The runs for whose success the newest submission of this one waits, or has waited."""
    return named_beside(run, submission_details(run).get("after") or [])


def named_beside(run: RunDir, names: Sequence[str]) -> list[RunDir]:
    """The runs of these ids in the same folder as `run`."""
    return [RunDir(run.path.parent / name) for name in names]


def failed_of(others: Sequence[RunDir]) -> list[tuple[RunDir, Outcome]]:
    """Those of the runs that ended without success, each with its outcome."""
    ended = [(other, other.last_outcome()) for other in others]
    return [(other, o) for other, o in ended if o is not None and o.state.final and o.state is not RunState.SUCCEEDED]


def never_starts(failed: Sequence[tuple[RunDir, Outcome]]) -> str:
    """The cause of a run's end that waited for runs which have failed."""
    words = [f"{other.id}, which ended as {outcome.state} ({outcome.cause})" for other, outcome in failed]
    return f"never started: it waited for {' and '.join(words)}"


def unstarted(run: RunDir, failed: Sequence[tuple[RunDir, Outcome]]) -> Outcome:
    """The end of a run that waited for runs which have failed. It is cancelled, unless they are its own parts: then it failed."""
    parts = [(other, outcome) for other, outcome in failed if other.record.get("parent") == run.id and outcome.state.failed]
    if not parts:
        return Outcome(state=RunState.CANCELLED, exit_code=EXIT_DONE, cause=never_starts(failed), ended=time.time())
    words = [f"its step {other.record.get('step')} ({other.id}) ended as {o.state}: {o.cause}" for other, o in parts]
    return Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause="; ".join(words), ended=time.time())


def open_dependencies(head: RunDir, after: Sequence[str]) -> list[RunDir]:
    """Those of the runs `after` that are not over yet. Raises ConfigError where one can never succeed."""
    others = named_beside(head, after)
    for other, outcome in failed_of(others):
        raise ConfigError(
            f"--after {other.id}: it ended as {outcome.state} ({outcome.cause}); `ropewalk resume {other.id}` first"
        )
    return [other for other in others if not is_over(other)]


def end_unstarted(run: RunDir, resources: Resources, failed: Sequence[tuple[RunDir, Outcome]]) -> None:
    """Write down that a run never starts because runs that it waits for have failed, in an attempt of its own."""
    number = next_attempt(run)
    open_attempts([run], resources, [{"after": [other.id for other, _ in failed]}], number)
    run.write_outcome(number, unstarted(run, failed))


# --- submitting


def refuse_short_limit(resources: Resources) -> None:
    """Raise ConfigError for a time limit that a scheduler would accept, and under which the run would never get to work."""
    limit = resources.time_limit_minutes
    if limit and limit * 60 <= resources.grace_seconds:
        raise ConfigError(
            f"resources.time_limit_minutes: {limit:g} is no longer than resources.grace_seconds ({resources.grace_seconds:g});"
            " the run would be told to stop as it starts: a longer limit, or less notice"
        )


def refuse_active(run: RunDir, active: Callable[[], str]) -> None:
    """Raise AlreadyRunningError if an earlier submission of the run is under way: `active` names it, or nothing.

    Nobody is asked where the run is over: whatever is left of it is leaving.
    """
    if not is_over(run) and (found := active()):
        raise AlreadyRunningError(run.id, found)


def open_attempts(
    runs: Sequence[RunDir], resources: Resources, own: Sequence[Mapping[str, Any]], number: int, *, durable: bool = True
) -> None:
    """Open attempt `number` of every run with what its submission writes down: the resources, and each run's own details.

    Details that are empty are left out. Raises BackendError if another submission of the runs was faster, and leaves nothing
    then. Not `durable`: see `begin_attempts`.
    """
    common = {"resources": resources.model_dump(mode="json"), "opened_by": BY_SUBMISSION}
    details = [{**common, **{key: value for key, value in each.items() if value not in (None, [])}} for each in own]
    try:
        begin_attempts([run.path for run in runs], details, number=number, durable=durable)
    except FileExistsError:
        raise BackendError(f"{runs[0].id}: another submission of it is under way; `ropewalk ps` shows it") from None


def retry_for(
    seconds: float,
    action: Callable[[], T],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call a submission's `action` until the scheduler answers; what it returns. It must be safe to repeat.

    Raises SubmissionInDoubtError if the scheduler is away for longer than `seconds`.
    """
    deadline, told = clock() + seconds, False
    while True:
        try:
            return action()
        except SchedulerAwayError as error:
            if clock() > deadline:
                words = f"{error}; nobody answered for {seconds:.0f} s, so the job may exist or not: when it is back,"
                raise SubmissionInDoubtError(f"{words} `ropewalk ps` tells; a resume never makes a second one") from None
            if not told:
                log.warning("%s; retrying for up to %.0f s (safe: submissions are idempotent)", error, seconds)
                told = True
        sleep(PAUSE_SECONDS)
