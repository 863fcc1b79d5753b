"""A run's state, from what Slurm says of its job and from what lies in its directory."""

import time
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import SETTLE_SECONDS, conclude, lost, never_submitted
from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, dependencies, failed_of, submission_details, unstarted
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.slurm.commands import Job
from ropewalk.slurm.job_lookup import job_id, owner_of, state_of
from ropewalk.slurm.times import FOREVER, seconds_of

HELD = ("JobHeld", "launch failed", "job requeued in held state")


def run_state(run: RunDir, job: Job | None, accounted: str | None = None) -> BackendState:
    """The run's state; an end of which only Slurm knows is written down as its outcome.

    `accounted` is the state that accounting has of a job that the controller has forgotten.
    """
    attempts = run.attempts()
    if not attempts:
        return never_submitted(run)
    outcome = run.outcome(attempts[-1])
    if outcome is not None and outcome.state.final:
        return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
    if job is None and accounted:
        told = Job(id="", state=accounted, reason="", nodes="", start="", end="", name="", comment="")
        job = told if state_of(told).final else None
    if job is None or _is_a_double(run, job):
        return _unknown(run, outcome)
    if state_of(job).final:
        return _settle(run, job, outcome)
    state = state_of(job)
    if state is RunState.PENDING and (len(attempts) > 1 or outcome is not None):
        state = RunState.REQUEUED
    return BackendState(state=state, word=job.state, reason=_reason(job), handle=f"slurm:{job.id}")


def _is_a_double(run: RunDir, job: Job) -> bool:
    """Whether the job only left because another one owns the run; Slurm has forgotten that other."""
    return bool(job.id) and state_of(job).final and owner_of(run) not in {"", job.id}


def _unknown(run: RunDir, outcome: Outcome | None) -> BackendState:
    details = submission_details(run)
    if not job_id(run) and time.time() - float(details.get("created") or 0) < PATIENCE_SECONDS:
        return BackendState(state=RunState.PENDING, word="submitting")
    if run.cancel_requested:
        cause = "cancelled; there was no job of it"
        return BackendState(state=RunState.CANCELLED, word="lost", reason=conclude(run, RunState.CANCELLED, cause).cause)
    if not job_id(run):
        said = "its submission was cut short"
    elif outcome is None and not owner_of(run):
        said = f"Slurm does not know job {job_id(run)} any more, which had not started"
    else:
        said = f"Slurm does not know job {job_id(run)} any more, and it left no final outcome"
    return lost(run, said)


def _settle(run: RunDir, job: Job, outcome: Outcome | None) -> BackendState:
    """Write down the end of a run whose job ended and left no outcome; its outcome may still be on its way."""
    ended = seconds_of(job.end)
    if outcome is None and ended != FOREVER and time.time() - ended < SETTLE_SECONDS and owner_of(run):
        return BackendState(state=RunState.RUNNING, word=job.state, reason="ended; its outcome is awaited")
    settled = conclude(run, *_end(run, job, outcome))
    return BackendState(state=settled.state, word=job.state, reason=settled.cause)


def _end(run: RunDir, job: Job, outcome: Outcome | None) -> tuple[RunState, str]:
    """The state and the cause of the end of a run whose job ended and left no outcome."""
    if job.state == "CANCELLED" and not run.cancel_requested and _waited_in_vain(run, job):
        others = dependencies(run)
        if failed := failed_of(others):
            end = unstarted(run, failed)
            return end.state, end.cause
        words = " and ".join(other.id for other in others) or "another run"
        return state_of(job), f"never started: it waited for {words}"
    return state_of(job), _cause(run, job, outcome)


def _cause(run: RunDir, job: Job, outcome: Outcome | None) -> str:
    if job.state == "CANCELLED":
        waited = outcome is not None or not owner_of(run)
        return ("cancelled" if run.cancel_requested else "cancelled in Slurm") + (" while it waited" if waited else "")
    words = _last_words(run.log_dir(run.attempts()[-1]) / "batch.log")
    said = f"Slurm says {job.state}" + (f" ({job.reason})" if job.reason not in {"", "None"} else "")
    return f"{said}; its script's last words: {words}" if words else said


def _waited_in_vain(run: RunDir, job: Job) -> bool:
    """Whether Slurm dropped the job because a run that it waited for failed.

    The reason of a job that a person cancels while it waits is `Dependency`.
    """
    return job.reason == "DependencyNeverSatisfied" or (not owner_of(run) and bool(failed_of(dependencies(run))))


def _last_words(log: Path) -> str:
    try:
        lines: Sequence[str] = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _reason(job: Job) -> str:
    reason = "" if job.reason == "None" else job.reason
    if reason.startswith(HELD):
        return f"{reason}; `scontrol release {job.id}` releases it"
    if job.state == "PENDING" and job.start not in {"N/A", "Unknown", ""}:
        return f"{reason}; may start at {job.start.replace('T', ' ')}"
    return reason
