"""Submission logic of all schedulers: idempotency keys, dependencies, checks, and retries while a scheduler is unavailable."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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


def submission_key(run: RunDir, attempt: int) -> str:
    """Return the idempotency key of the submission that opens an attempt: a repetition with the same key has no effect."""
    return f"ropewalk:{run.id}:{attempt}"


def newest_submission(run: RunDir) -> tuple[int, dict[str, Any]]:
    """Return the attempt that the newest submission opened (retries open later ones) and its details, or (0, {})."""
    attempts = run.attempts()
    for number in reversed(attempts):
        details = run.attempt_details(number)
        if details.get("opened_by") == BY_SUBMISSION:
            return number, details
    return (attempts[0], run.attempt_details(attempts[0])) if attempts else (0, {})


def submission_details(run: RunDir) -> dict[str, Any]:
    """Return the details that the newest submission recorded: key, profile, resources, and keys of the backend."""
    return newest_submission(run)[1]


def next_attempt(run: RunDir) -> int:
    """Return the number of the attempt that the next submission of the run opens."""
    return (run.attempts() or [0])[-1] + 1


def is_over(run: RunDir) -> bool:
    """Return True if the run has ended for good according to its files."""
    outcome = run.last_outcome()
    return outcome is not None and outcome.state.final


# --- dependencies


class Condition(StrEnum):
    """End of a run for which another run waits."""

    OK = "ok"
    ANY = "any"
    FAILED = "failed"  # any end but success

    def holds(self, state: RunState) -> bool:
        """Return True if this final state is the end that is waited for."""
        return self is Condition.ANY or (state is RunState.SUCCEEDED) is (self is Condition.OK)


@dataclass(frozen=True)
class Dependency:
    """A run that must end before another run starts. Its text is `RUN`, `any:RUN` or `failed:RUN`."""

    run: RunDir
    condition: Condition = Condition.OK

    def __str__(self) -> str:
        return self.run.id if self.condition is Condition.OK else f"{self.condition}:{self.run.id}"

    @property
    def awaited_end(self) -> str:
        """Phrase for the end that is waited for, such as `has succeeded`."""
        return {Condition.OK: "has succeeded", Condition.ANY: "has ended", Condition.FAILED: "has ended without success"}[
            self.condition
        ]


def split_dependency(text: str) -> tuple[Condition, str]:
    """Split the text of a dependency into its condition and the name of the run."""
    condition, separator, name = text.partition(":")
    return (Condition(condition), name) if separator and condition in set(Condition) else (Condition.OK, text)


def dependencies(run: RunDir) -> list[Dependency]:
    """Return the runs that must end before the newest submission of `run` starts."""
    return dependencies_beside(run, submission_details(run).get("after") or [])


def dependencies_beside(run: RunDir, texts: Sequence[str]) -> list[Dependency]:
    """Parse dependencies on runs in the same folder as `run`."""
    split = map(split_dependency, texts)
    return [Dependency(RunDir(run.path.parent / name), condition) for condition, name in split]


def broken_dependencies(others: Sequence[Dependency]) -> list[tuple[Dependency, Outcome]]:
    """Return the dependencies that can no longer be met, each with the outcome of its run."""
    ended = [(other, other.run.last_outcome()) for other in others]
    return [(other, o) for other, o in ended if o is not None and o.state.final and not other.condition.holds(o.state)]


def unstarted_outcome(run: RunDir, broken: Sequence[tuple[Dependency, Outcome]]) -> Outcome:
    """Return the outcome of a run with broken dependencies: FAILED if one is a failed step of it (a pipeline), else CANCELLED."""
    parts = [(other.run, o) for other, o in broken if other.run.record.get("parent") == run.id and o.state.failed]
    if not parts:
        cause = f"never started: it waited for {' and '.join(_describe(other, outcome) for other, outcome in broken)}"
        return Outcome(state=RunState.CANCELLED, exit_code=EXIT_DONE, cause=cause, ended=time.time())
    causes = [f"its step {other.record.get('step')} ({other.id}) ended as {o.state}: {o.cause}" for other, o in parts]
    return Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause="; ".join(causes), ended=time.time())


def _describe(other: Dependency, outcome: Outcome) -> str:
    if other.condition is Condition.FAILED:
        return f"{other.run.id} to fail, which ended as {outcome.state}"
    return f"{other.run.id}, which ended as {outcome.state} ({outcome.cause})"


def open_dependencies(head: RunDir, after: Sequence[str]) -> list[Dependency]:
    """Return the dependencies whose runs have not ended. Raises ConfigError if one can no longer be met."""
    others = dependencies_beside(head, after)
    for other, outcome in broken_dependencies(others):
        if other.condition is Condition.FAILED:
            raise ConfigError(f"--after {other}: that run has succeeded; to start after any end: --after any:{other.run.id}")
        raise ConfigError(
            f"--after {other.run.id}: that run ended as {outcome.state} ({outcome.cause}); `ropewalk resume {other.run.id}` "
            f"first, or start after any end: --after any:{other.run.id}"
        )
    return [other for other in others if not is_over(other.run)]


def end_unstarted(run: RunDir, resources: Resources, broken: Sequence[tuple[Dependency, Outcome]]) -> None:
    """Record, in a new attempt, that a run does not start because of broken dependencies."""
    number = next_attempt(run)
    open_attempts([run], resources, [{"after": [str(other) for other, _ in broken]}], number)
    run.write_outcome(number, unstarted_outcome(run, broken))


# --- submitting


def refuse_short_limit(resources: Resources) -> None:
    """Raise ConfigError if the time limit is not longer than the grace period, so that the run would stop as it starts."""
    limit = resources.time_limit_minutes
    if limit and limit * 60 <= resources.grace_seconds:
        raise ConfigError(
            f"resources.time_limit_minutes: {limit:g} is no longer than resources.grace_seconds ({resources.grace_seconds:g});"
            " the run would have to stop as it starts: increase the limit or reduce the grace period"
        )


def refuse_active(run: RunDir, active: Callable[[], str]) -> None:
    """Raise AlreadyRunningError if an earlier submission of the run is active.

    `active` returns a phrase for that submission, or an empty string. It is not called if the run has ended: then the rest of
    it is about to exit.
    """
    if not is_over(run) and (submission := active()):
        raise AlreadyRunningError(run.id, submission)


def open_attempts(
    runs: Sequence[RunDir], resources: Resources, details: Sequence[Mapping[str, Any]], number: int, *, durable: bool = True
) -> None:
    """Open attempt `number` of every run, and record the resources and each run's `details` (without empty values).

    Raises BackendError, and leaves nothing behind, if another submission of the runs was faster. For `durable` see
    `begin_attempts`.
    """
    common = {"resources": resources.model_dump(mode="json"), "opened_by": BY_SUBMISSION}
    recorded = [{**common, **{key: value for key, value in each.items() if value not in (None, [])}} for each in details]
    try:
        begin_attempts([run.path for run in runs], recorded, number=number, durable=durable)
    except FileExistsError:
        raise BackendError(f"{runs[0].id}: another submission of this run is in progress; see `ropewalk ps`") from None


def retry_for(
    seconds: float,
    action: Callable[[], T],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Repeat `action`, an idempotent submission, while the scheduler is away. Raises SubmissionInDoubtError after `seconds`."""
    deadline, warned = clock() + seconds, False
    while True:
        try:
            return action()
        except SchedulerAwayError as error:
            if clock() > deadline:
                message = f"{error}; no answer for {seconds:.0f} s, so the job may or may not exist: see `ropewalk ps` when"
                raise SubmissionInDoubtError(f"{message} the scheduler is back; a resume never submits it twice") from None
            if not warned:
                log.warning("%s; retrying for up to %.0f s (safe: submissions are idempotent)", error, seconds)
                warned = True
        sleep(PAUSE_SECONDS)
