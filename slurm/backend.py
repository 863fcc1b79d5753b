"""The Slurm backend: submits job scripts, exactly once, and reads what Slurm says of them in one question."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from cluster.attempt import AGENTS
from cluster.backend import BackendState, Check, Profile
from cluster.config import Resources, load_section
from cluster.errors import BackendError, ConfigError
from cluster.files import write_atomically
from cluster.run_dir import RunDir, begin_attempts
from cluster.spec import Outcome, RunState
from cluster.supervisor import BY_SUBMISSION
from slurm.commands import ControllerAwayError, Job, Slurm
from slurm.job import FOREVER, seconds_of
from slurm.profile import SlurmProfile
from slurm.script import ARRAY_LIST, key_of, render_job
from slurm.submit import submit_once

SUBMITTING_SECONDS = 60.0  # as long may a submission take before we say that it was lost
SETTLE_SECONDS = 15.0  # a job that ended may have written its outcome on a file system that shows it late

STATES = {
    "PENDING": RunState.PENDING,
    "REQUEUED": RunState.REQUEUED,
    "REQUEUE_HOLD": RunState.PENDING,
    "REQUEUE_FED": RunState.REQUEUED,
    "SPECIAL_EXIT": RunState.PENDING,
    "CANCELLED": RunState.CANCELLED,
    "PREEMPTED": RunState.FAILED,
    "COMPLETED": RunState.FAILED,  # a job that ended well has left an outcome
    "FAILED": RunState.FAILED,
    "TIMEOUT": RunState.FAILED,
    "NODE_FAIL": RunState.FAILED,
    "OUT_OF_MEMORY": RunState.FAILED,
    "BOOT_FAIL": RunState.FAILED,
    "DEADLINE": RunState.FAILED,
    "REVOKED": RunState.FAILED,
    "LAUNCH_FAILED": RunState.FAILED,
}  # any other word is a job at work


class SlurmBackend:
    """A Slurm cluster, seen from a machine that has its commands."""

    ships_code: ClassVar[bool] = True

    def __init__(self, profile: Profile, slurm: Slurm | None = None) -> None:
        self.profile = load_section(SlurmProfile, profile.options, f"cluster {profile.name!r}")
        self.slurm = slurm or Slurm()

    # --- submitting

    def render(self, run: RunDir, resources: Resources) -> str:
        """The job script."""
        return render_job(run, resources, self.profile)

    def render_many(self, runs: Sequence[RunDir], resources: Resources) -> str:
        """The job script of an array of runs."""
        return render_job(runs[0], resources, self.profile, runs=len(runs))

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Submit the run's next attempt; a job that the same submission made already is adopted."""
        if run.attempts():
            self._refuse_if_carried(run)
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """The same for many runs, as one array; at most `at_once` of them run at a time."""
        head, array = runs[0], len(runs) > 1
        number = (head.attempts() or [0])[-1] + 1
        script = render_job(head, resources, self.profile, number, len(runs))
        options = self._dependency(head, after)
        details = self._details(head, number, resources)
        numbers = begin_attempts(runs, [{**details, **({"index": i} if array else {})} for i in range(len(runs))])
        if set(numbers) != {number}:
            raise BackendError(f"{head.id}: another submission of it is under way; `ropewalk ps` shows it")
        head.make_folders(number)  # Slurm itself writes the script's log
        place = head.attempt_dir(number)
        write_atomically(place / "job.sbatch", script)
        if array:
            write_atomically(place / ARRAY_LIST, "".join(f"{run.id}\n" for run in runs))
            options.append(f"--array=0-{len(runs) - 1}{f'%{at_once}' if at_once else ''}")
        where = head.path.parent if array else head.path
        job = submit_once(self.slurm, place / "job.sbatch", where, key=key_of(head, number), options=options)
        handles = [f"slurm:{job}_{i}" if array else f"slurm:{job}" for i in range(len(runs))]
        if not array:
            head.describe_attempt(number, handle=handles[0])
        else:
            write_atomically(place / "array", job)
        return handles

    def _details(self, head: RunDir, number: int, resources: Resources) -> dict[str, Any]:
        plain = self.profile.model_dump(mode="json", exclude_defaults=True)
        return {
            "resources": resources.model_dump(mode="json"),
            "backend": "slurm",
            "opened_by": BY_SUBMISSION,
            "key": key_of(head, number),
            "profile": plain,
        }

    def _refuse_if_carried(self, run: RunDir) -> None:
        job = self._jobs_of([run], self.slurm.my_jobs()).get(run.id)
        if job is not None and not STATES.get(job.state, RunState.RUNNING).final:
            raise BackendError(f"{run.id} is being carried already (slurm:{job.id}); `ropewalk cancel {run.id}` ends it")

    def _dependency(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Options that let Slurm start the run when others have succeeded, and drop it when one cannot any more."""
        others = [RunDir(head.path.parent / word) for word in after]
        waiting = []
        for other in others:
            outcome = other.last_outcome()
            if outcome is not None and outcome.state.final:
                if outcome.state is not RunState.SUCCEEDED:
                    raise ConfigError(f"--after {other.id}: it ended as {outcome.state} ({outcome.cause}); resume it first")
                continue
            waiting.append(other)
        if not waiting:
            return []
        jobs = self._jobs_of(waiting, self.slurm.my_jobs())
        missing = [other.id for other in waiting if other.id not in jobs]
        if missing:
            raise ConfigError(
                f"--after {missing[0]}: it is no job of this cluster; a run can only wait for runs of its own cluster"
            )
        ids = ":".join(jobs[other.id].id for other in waiting)
        return [f"--dependency=afterok:{ids}", "--kill-on-invalid-dep=yes"]

    # --- asking

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """One squeue for all. Without a controller the runs' own files tell the last that is known."""
        try:
            jobs = self._jobs_of(runs, self.slurm.my_jobs())
        except ControllerAwayError as error:
            return {run.id: _last_known(run, str(error)) for run in runs}
        forgotten = self._forgotten([run for run in runs if run.id not in jobs])
        return {run.id: self._state(run, jobs.get(run.id), forgotten.get(run.id)) for run in runs}

    def _jobs_of(self, runs: Sequence[RunDir], jobs: Sequence[Job]) -> dict[str, Job]:
        """The job of each run: by the submission key in its comment, so that not even a lost handle hides it."""
        known = {(job.comment, job.id.partition("_")[2]): job for job in jobs if job.comment.startswith("ropewalk:")}
        found = {}
        for run in runs:
            details = run.attempt_details((run.attempts() or [0])[-1])
            index = details.get("index")
            job = known.get((details.get("key", ""), "" if index is None else str(index)))
            if job is not None:
                found[run.id] = job
        return found

    def _forgotten(self, runs: Sequence[RunDir]) -> dict[str, str]:
        """What accounting, if there is any, says of jobs that the controller has forgotten."""
        handles = {run.id: _job_id(run) for run in runs if run.last_outcome() is None}
        ids = {run: job for run, job in handles.items() if job}
        states = self.slurm.accounted(sorted(set(ids.values()))) if ids else {}
        return {run: states[job] for run, job in ids.items() if job in states}

    def _state(self, run: RunDir, job: Job | None, accounted: str | None) -> BackendState:
        outcome, attempts = run.last_outcome(), run.attempts()
        if outcome is not None and outcome.state.final:
            return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
        if job is None:
            return self._unknown(run, attempts, accounted)
        state = STATES.get(job.state, RunState.RUNNING)
        if state.final:
            return self._settled(run, job, state)
        if state is RunState.PENDING and (len(attempts) > 1 or outcome is not None):
            state = RunState.REQUEUED
        return BackendState(state=state, word=job.state, reason="" if job.reason == "None" else _reason(job))

    def _unknown(self, run: RunDir, attempts: list[int], accounted: str | None) -> BackendState:
        details = run.attempt_details(attempts[-1]) if attempts else {}
        if time.time() - float(details.get("created") or 0) < SUBMITTING_SECONDS:
            return BackendState(state=RunState.PENDING, word="submitting")
        said = f"Slurm ended it as {accounted}" if accounted else "Slurm does not know it any more"
        remedy = f"{said}, and it left no outcome; `ropewalk resume {run.id}` goes on from its last checkpoint"
        return BackendState(state=RunState.UNKNOWN, word="lost", reason=remedy)

    def _settled(self, run: RunDir, job: Job, state: RunState) -> BackendState:
        """A job that ended without a word of ours: what Slurm says is written down as the run's outcome."""
        ended = seconds_of(job.end)
        if ended != FOREVER and time.time() - ended < SETTLE_SECONDS and "started" in run.attempt_details(run.attempts()[-1]):
            return BackendState(state=RunState.RUNNING, word=job.state, reason="ended; its outcome is awaited")
        cause = _cause(run, job)
        code = 0 if state is RunState.CANCELLED else 1
        run.write_outcome(run.attempts()[-1], Outcome(state=state, exit_code=code, cause=cause, ended=time.time()))
        return BackendState(state=state, word=job.state, reason=cause)

    # --- the rest

    def cancel(self, run: RunDir) -> None:
        """A run at work is told to save and leave; one that waits is taken out of the queue."""
        run.request_cancel()
        job = self._jobs_of([run], self.slurm.my_jobs()).get(run.id)
        if job is None:
            return
        if job.state == "PENDING":
            self.slurm.cancel(job.id)
            self._cancelled_waiting(run)
        # a run at work finds the request in its directory, within moments and without Slurm

    def _cancelled_waiting(self, run: RunDir) -> None:
        outcome, cause = run.last_outcome(), "cancelled while it waited"
        if outcome is None:
            outcome = Outcome(state=RunState.CANCELLED, exit_code=0, cause=cause, ended=time.time())
        else:
            outcome = replace(outcome, state=RunState.CANCELLED, cause=f"{outcome.cause}; {cause}")
        run.write_outcome(run.attempts()[-1], outcome)

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        from slurm.fitness import checks  # noqa: PLC0415 - only doctor needs it

        return checks(self.slurm, self.profile)

    def outlook(self, run: RunDir, resources: Resources) -> str:
        """Whether the run would wait, why, and what smaller request would start sooner; one sentence."""
        from slurm.outlook import foresee  # noqa: PLC0415 - only a dry run needs it

        return foresee(self.slurm, run, resources, self.profile)


def _job_id(run: RunDir) -> str:
    attempts = run.attempts()
    details = run.attempt_details(attempts[-1]) if attempts else {}
    return str(details.get("handle") or "").partition(":")[2]


def _last_known(run: RunDir, error: str) -> BackendState:
    outcome, attempts = run.last_outcome(), run.attempts()
    reason = f"{error}; this is the last that its files tell"
    if outcome is not None:
        return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, reason=reason)
    at_work = attempts and (run.attempt_dir(attempts[-1]) / AGENTS).exists()
    return BackendState(state=RunState.RUNNING if at_work else RunState.PENDING, reason=reason)


def _reason(job: Job) -> str:
    if job.state == "PENDING" and job.start not in {"N/A", "Unknown", ""}:
        return f"{job.reason}; may start at {job.start.replace('T', ' ')}"
    return job.reason


def _cause(run: RunDir, job: Job) -> str:
    if job.state == "CANCELLED" and job.reason.startswith("Dependency"):
        return "a run that it waited for did not succeed"
    if job.state == "CANCELLED":
        return "cancelled in Slurm"
    log = run.log_dir(run.attempts()[-1]) / "batch.log"
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:] if log.exists() else []
    tail = f"; its script's last words: {last[0]}" if last else ""
    return f"Slurm says {job.state} ({job.reason}){tail}"
