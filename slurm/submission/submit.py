"""One job a submission: sbatch may time out though it made the job, so a job under the submission's key is adopted."""

import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, retry_for
from ropewalk.slurm.commands import Slurm


def submit_once(
    slurm: Slurm,
    script: Path,
    where: Path,
    *,
    key: str,
    options: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Submit a script under `key`, which `options` make its comment, from the directory `where`; the job's id.

    Raises BackendError with Slurm's own words if it refuses, SubmissionInDoubtError if no controller answers for two minutes.
    """
    tries = count()

    def submit() -> str:
        made = find(slurm, key) if next(tries) else None
        return made or slurm.sbatch(script, f"--chdir={where}", *options)

    return retry_for(PATIENCE_SECONDS, submit, sleep=sleep, clock=clock)


def find(slurm: Slurm, key: str) -> str | None:
    """The id of the job that was made under a key, if any."""
    return next((job.id.partition("_")[0] for job in slurm.my_jobs() if job.comment == key), None)
