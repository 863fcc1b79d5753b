"""Finds a run's Slurm job by the key in its comment; a controller may forget a job and give its id to another one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ropewalk.cluster.backends.submission import newest_submission, submission_details, submission_key
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.commands import Job

OWNER = "job"  # file in a submission's attempt: id of the job that owns it
SUBMITTED = "submitted"  # file in the (first) run's attempt: id that sbatch returned; the client writes it, never the job

STATES = {
    "PENDING": RunState.PENDING,
    "REQUEUED": RunState.REQUEUED,
    "REQUEUE_HOLD": RunState.PENDING,
    "REQUEUE_FED": RunState.REQUEUED,
    "RESV_DEL_HOLD": RunState.PENDING,
    "SPECIAL_EXIT": RunState.PENDING,
    "CANCELLED": RunState.CANCELLED,
    "PREEMPTED": RunState.FAILED,
    "COMPLETED": RunState.FAILED,  # a job that ended normally has written an outcome
    "FAILED": RunState.FAILED,
    "TIMEOUT": RunState.FAILED,
    "NODE_FAIL": RunState.FAILED,
    "OUT_OF_MEMORY": RunState.FAILED,
    "BOOT_FAIL": RunState.FAILED,
    "DEADLINE": RunState.FAILED,
    "REVOKED": RunState.FAILED,
    "LAUNCH_FAILED": RunState.FAILED,
}  # any other state is that of a running job


def state_of(job: Job) -> RunState:
    """Return the run state that corresponds to a job's Slurm state."""
    return STATES.get(job.state, RunState.RUNNING)


def is_waiting(job: Job) -> bool:
    """Return True if the job waits in the queue."""
    return state_of(job) in {RunState.PENDING, RunState.REQUEUED}


def owner_of(run: RunDir) -> str:
    """Return the id of the job that owns the newest submission; empty if none has started yet."""
    try:
        return (run.attempt_dir(newest_submission(run)[0]) / OWNER).read_text()
    except FileNotFoundError:
        return ""


def this_job(environment: Mapping[str, str]) -> str:
    """Return the id of the job that this process is part of, in squeue's form: 123, or 123_4 in an array."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def job_id(run: RunDir) -> str:
    """Return the job id of the newest submission; empty if unknown. Slurm may have given it to another job since."""
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
    """Return the job name of the newest submission."""
    return f"ropewalk-{_parts(str(submission_details(run).get('key') or submission_key(run, 1)))[0]}"


def jobs_of(runs: Sequence[RunDir], jobs: Sequence[Job]) -> dict[str, Job]:
    """Return the job of each run by run id; runs without a job among `jobs` are left out."""
    by_run: dict[tuple[str, str], list[Job]] = {}
    arrays: dict[str, Job] = {}  # any job of an array, by the array's key
    for job in jobs:
        # sites can rewrite comments with a plugin; then the job name identifies the run
        key_or_name = job.comment if job.comment.startswith("ropewalk:") else job.name.replace("ropewalk-", "ropewalk:", 1) + ":"
        if key_or_name.startswith("ropewalk:") and key_or_name.count(":") == 2:
            by_run.setdefault((_parts(key_or_name)[0], job.id.partition("_")[2]), []).append(job)
            arrays[key_or_name] = job
    job_of_run = {}
    for run in runs:
        details = submission_details(run)
        key, index = str(details.get("key") or submission_key(run, 0)), str(details.get("index", ""))
        chosen = _choose(run, key, by_run.get((_parts(key)[0], index), []))
        if chosen is None and index and key in arrays and not owner_of(run):
            chosen = _cancelled_element(arrays[key], index)
        if chosen is not None:
            job_of_run[run.id] = chosen
    return job_of_run


def _cancelled_element(other: Job, index: str) -> Job:
    """Return the job of an array element that Slurm no longer lists, which means that it was cancelled before it started."""
    reason = other.reason if other.state == "CANCELLED" else "None"
    return replace(other, id=f"{other.id.partition('_')[0]}_{index}", state="CANCELLED", reason=reason, start="N/A")


def _parts(key: str) -> tuple[str, str]:
    _, run, number = key.split(":")
    return run, number


def _choose(run: RunDir, key: str, candidates: Sequence[Job]) -> Job | None:
    """Choose the run's job. There can be two: a retried sbatch may have made a second one, or a delayed one arrived late."""
    ours = [job for job in candidates if not job.comment.startswith("ropewalk:") or job.comment == key]
    alive = [job for job in candidates if not state_of(job).final]
    if len(candidates) < 2:
        return next(iter(ours or alive), None)
    owner = owner_of(run)
    ranked = [*(job for job in candidates if job.id == owner), *(job for job in ours if job in alive), *alive, *ours[::-1]]
    return next(iter(ranked), None)
