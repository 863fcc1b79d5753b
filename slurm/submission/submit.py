"""Exactly once: sbatch may time out though the job was made, so what exists under the submission's key is adopted."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.backends.recovery import PATIENCE_SECONDS
from cluster.errors import BackendError
from slurm.commands import ControllerAwayError, Slurm

PAUSE_SECONDS = 1.0


class SubmissionInDoubtError(BackendError):
    """Nobody answered: the job may exist or not."""


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
    deadline = clock() + PATIENCE_SECONDS
    in_doubt = False
    while True:
        try:
            made = find(slurm, key) if in_doubt else None
            return made or slurm.sbatch(script, f"--chdir={where}", *options)
        except ControllerAwayError as error:
            in_doubt = True
            if clock() > deadline:
                told = f"{error}; nobody answered for {PATIENCE_SECONDS:.0f} s, so the job may exist or not: when Slurm is back,"
                raise SubmissionInDoubtError(f"{told} `ropewalk ps` tells; a resume never makes a second one") from None
        sleep(PAUSE_SECONDS)


def find(slurm: Slurm, key: str) -> str | None:
    """The job that was made under a key, if any."""
    return next((job.id.partition("_")[0] for job in slurm.my_jobs() if job.comment == key), None)
