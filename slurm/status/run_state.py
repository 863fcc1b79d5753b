"""Derives a run's state from its Slurm job and its run directory."""

import time
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import SETTLE_SECONDS, lost_state, record_missing_outcome, unsubmitted_state
from ropewalk.cluster.backends.submission import (
    PATIENCE_SECONDS,
    broken_dependencies,
    dependencies,
    submission_details,
    unstarted_outcome,
)
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.slurm.commands import Job
from ropewalk.slurm.job_lookup import job_id, owner_of, state_of
from ropewalk.slurm.times import FOREVER, seconds_of

HELD = ("JobHeld", "launch failed", "job requeued in held state")


def run_state(run: RunDir, job: Job | None, accounted: str | None = None) -> BackendState:
    """Return the run's state. If only Slurm knows how the run ended, record that as its outcome.

    `accounted` is the state in accounting of a job that the controller has forgotten.
    """
    attempts = run.attempts()
    if not attempts:
        return unsubmitted_state(run)
    outcome = run.outcome(attempts[-1])
    if outcome is not None and outcome.state.final:
        return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
    if job is None and accounted:
        accounting_job = Job(id="", state=accounted, reason="", nodes="", start="", end="", name="", comment="")
        job = accounting_job if state_of(accounting_job).final else None
    if job is None or _is_duplicate(run, job):
        return _state_without_job(run, outcome)
    if state_of(job).final:
        return _record_end(run, job, outcome)
    state = state_of(job)
    if state is RunState.PENDING and (len(attempts) > 1 or outcome is not None):
        state = RunState.REQUEUED
    return BackendState(state=state, word=job.state, reason=_reason(run.id, job), handle=f"slurm:{job.id}")


def _is_duplicate(run: RunDir, job: Job) -> bool:
    """Return True if the job exited because another job, which Slurm has forgotten, owns the run."""
    return bool(job.id) and state_of(job).final and owner_of(run) not in {"", job.id}


def _state_without_job(run: RunDir, outcome: Outcome | None) -> BackendState:
    details = submission_details(run)
    if not job_id(run) and time.time() - float(details.get("created") or 0) < PATIENCE_SECONDS:
        return BackendState(state=RunState.PENDING, word="submitting")
    if run.cancel_requested:
        cause = "cancelled; it had no job"
        return BackendState(
            state=RunState.CANCELLED, word="lost", reason=record_missing_outcome(run, RunState.CANCELLED, cause).cause
        )
    if not job_id(run):
        message = "its submission was interrupted"
    elif outcome is None and not owner_of(run):
        message = f"Slurm no longer knows job {job_id(run)}, which had not started"
    else:
        message = f"Slurm no longer knows job {job_id(run)}, and it left no final outcome"
    return lost_state(run, message)


def _record_end(run: RunDir, job: Job, outcome: Outcome | None) -> BackendState:
    """Record the end of a run whose job ended without an outcome; wait first in case the outcome is not visible yet."""
    ended = seconds_of(job.end)
    if outcome is None and ended != FOREVER and time.time() - ended < SETTLE_SECONDS and owner_of(run):
        return BackendState(state=RunState.RUNNING, word=job.state, reason="ended; waiting for its outcome")
    recorded = record_missing_outcome(run, *_end(run, job, outcome))
    return BackendState(state=recorded.state, word=job.state, reason=recorded.cause)


def _end(run: RunDir, job: Job, outcome: Outcome | None) -> tuple[RunState, str]:
    """Return the final state of a run whose job ended without an outcome, and the cause."""
    if job.state == "CANCELLED" and not run.cancel_requested and _dependency_failed(run, job):
        others = dependencies(run)
        if broken := broken_dependencies(others):
            end = unstarted_outcome(run, broken)
            return end.state, end.cause
        names = " and ".join(other.run.id for other in others) or "another run"
        return state_of(job), f"never started: it waited for {names}"
    return state_of(job), _cause(run, job, outcome)


def _cause(run: RunDir, job: Job, outcome: Outcome | None) -> str:
    if job.state == "CANCELLED":
        waited = outcome is not None or not owner_of(run)
        return ("cancelled" if run.cancel_requested else "cancelled in Slurm") + (" while waiting" if waited else "")
    last_line = _last_line(run.log_dir(run.attempts()[-1]) / "batch.log")
    message = f"Slurm reports {job.state}" + (f" ({job.reason})" if job.reason not in {"", "None"} else "")
    return f"{message}; last line of the job script's log: {last_line}" if last_line else message


def _dependency_failed(run: RunDir, job: Job) -> bool:
    """Return True if Slurm dropped the job for a failed dependency; cancelled waiting jobs have the reason `Dependency` too."""
    return job.reason == "DependencyNeverSatisfied" or (not owner_of(run) and bool(broken_dependencies(dependencies(run))))


def _last_line(log: Path) -> str:
    try:
        lines: Sequence[str] = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _reason(run: str, job: Job) -> str:
    reason = "" if job.reason == "None" else job.reason
    if reason.startswith(HELD):
        return f"{reason}; release it with `ropewalk release {run}`"
    if job.state == "PENDING" and job.start not in {"N/A", "Unknown", ""}:
        return f"{reason}; may start at {job.start.replace('T', ' ')}"
    return reason
