"""Which job is whose: the key in its comment decides. An id alone says little: a controller may forget a job and give its id
to another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ropewalk.cluster.backends.submission import key_of, newest_submission, submission_details
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.commands import Job

OWNER = "job"  # in a submission's attempt: the job that owns it
SUBMITTED = "submitted"  # in the (first) run's attempt: the id that sbatch gave; a client writes this, attempt.json is the job's

STATES = {
    "PENDING": RunState.PENDING,
    "REQUEUED": RunState.REQUEUED,
    "REQUEUE_HOLD": RunState.PENDING,
    "REQUEUE_FED": RunState.REQUEUED,
    "RESV_DEL_HOLD": RunState.PENDING,
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


def state_of(job: Job) -> RunState:
    """The run state that a job's state in Slurm means."""
    return STATES.get(job.state, RunState.RUNNING)


def waits(job: Job) -> bool:
    """Whether the job waits in the queue."""
    return state_of(job) in {RunState.PENDING, RunState.REQUEUED}


def owner_of(run: RunDir) -> str:
    """The job that owns the newest submission; empty: none has started yet."""
    try:
        return (run.attempt_dir(newest_submission(run)[0]) / OWNER).read_text()
    except FileNotFoundError:
        return ""


def this_job(environment: Mapping[str, str]) -> str:
    """The job that this process is part of, as squeue calls it: 123, or 123_4 in an array."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def job_id(run: RunDir) -> str:
    """The id of the newest submission's job; empty: none is known. Slurm may have given it to another job since."""
    details = submission_details(run)
    if handle := str(details.get("handle") or "").partition(":")[2]:
        return handle
    if "key" not in details:
        return ""
    head, number = _parts(str(details["key"]))
    try:
        job = (RunDir(run.path.parent / head).attempt_dir(int(number)) / SUBMITTED).read_text()
    except FileNotFoundError:
        return ""
    return f"{job}_{details['index']}" if "index" in details else job


def job_name(run: RunDir) -> str:
    """The name of the newest submission's job."""
    return f"ropewalk-{_parts(str(submission_details(run).get('key') or key_of(run, 1)))[0]}"


def jobs_of(runs: Sequence[RunDir], jobs: Sequence[Job]) -> dict[str, Job]:
    """The job of each run that has one among `jobs`, by run id."""
    by_run: dict[tuple[str, str], list[Job]] = {}
    arrays: dict[str, Job] = {}  # any job of a head run's array
    for job in jobs:
        # a site's plugin may rewrite comments; then the name must do
        named = job.comment if job.comment.startswith("ropewalk:") else job.name.replace("ropewalk-", "ropewalk:", 1) + ":"
        if named.startswith("ropewalk:") and named.count(":") == 2:
            by_run.setdefault((_parts(named)[0], job.id.partition("_")[2]), []).append(job)
            arrays[named] = job
    found = {}
    for run in runs:
        details = submission_details(run)
        key, index = str(details.get("key") or key_of(run, 0)), str(details.get("index", ""))
        chosen = _choose(run, key, by_run.get((_parts(key)[0], index), []))
        if chosen is None and index and key in arrays and not owner_of(run):
            chosen = _vanished(arrays[key], index)
        if chosen is not None:
            found[run.id] = chosen
    return found


def _vanished(other: Job, index: str) -> Job:
    """An element of a known array that Slurm does not list any more: it was cancelled before it started."""
    reason = other.reason if other.state == "CANCELLED" else "None"
    return replace(other, id=f"{other.id.partition('_')[0]}_{index}", state="CANCELLED", reason=reason, start="N/A")


def _parts(key: str) -> tuple[str, str]:
    _, run, number = key.split(":")
    return run, number


def _choose(run: RunDir, key: str, candidates: Sequence[Job]) -> Job | None:
    """The one job of the run: a retried sbatch may have made two, and one that was believed lost may come late."""
    ours = [job for job in candidates if not job.comment.startswith("ropewalk:") or job.comment == key]
    alive = [job for job in candidates if not state_of(job).final]
    if len(candidates) < 2:
        return next(iter(ours or alive), None)
    owner = owner_of(run)
    ranked = [*(job for job in candidates if job.id == owner), *(job for job in ours if job in alive), *alive, *ours[::-1]]
    return next(iter(ranked), None)
