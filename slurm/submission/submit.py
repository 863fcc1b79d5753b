"""Submits exactly one job per submission: a job that sbatch created although it timed out is adopted by its key."""

import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, retry_for
from ropewalk.slurm.commands import Slurm


def submit_once(
    slurm: Slurm,
    script: Path,
    workdir: Path,
    *,
    key: str,
    options: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Submit a script from `workdir` and return the job's id. `options` must make `key` the job's comment.

    Raises BackendError with Slurm's message if it refuses, SubmissionInDoubtError if no controller answers for two minutes.
    """
    tries = count()

    def submit() -> str:
        job = find(slurm, key) if next(tries) else None
        return job or slurm.sbatch(script, f"--chdir={workdir}", *options)

    return retry_for(PATIENCE_SECONDS, submit, sleep=sleep, clock=clock)


def find(slurm: Slurm, key: str) -> str | None:
    """Return the id of the job with a key, if there is one."""
    return next((job.id.partition("_")[0] for job in slurm.my_jobs() if job.comment == key), None)
