"""Array tasks in Slurm arrays, submitted through submitit and watched by one squeue for all."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import clean_env

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.context import STOP_VARIABLE
from ropewalk.datapipe.execution.array_task import Share, do_share
from ropewalk.datapipe.execution.config import ArrayOptions
from ropewalk.datapipe.execution.executor import NOTICE_SECONDS, UNLIMITED, ControllerAwayError, importing_this_program

ROOM_SECONDS = 0.5  # between two checks for array tasks that delivered their results but have not ended
COMMAND_SECONDS = 60.0
CLEAR_SECONDS = 60.0
ENDING_SECONDS = 10.0  # from an array task's last result to the end of its process
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")

_OVER = re.compile(r"COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL|PREEMPTED|BOOT_FAIL|DEADLINE|OUT_OF_ME|REVOKED")
_AWAY = re.compile(r"unable to contact slurm controller|socket timed out|timed out|connection refused", re.IGNORECASE)


class SlurmArray:
    """Runs array tasks in the partition, account and QOS of the driver's job."""

    same_machine = False

    def __init__(self, options: ArrayOptions, name: str) -> None:
        self.options, self.name = options, name
        self.submitted = self.queried = self.checked = float("-inf")
        self.ending_since: float | None = None
        self.missing: set[str] = set()
        self.arrays: set[str] = set()  # ids of all submitted arrays

    def num_array_tasks(self, num_tasks: int) -> int:
        """Return `array.jobs`, else 64, but at least the number that may run at once."""
        return min(num_tasks, self.options.jobs or max(64, self.options.at_once or 0))

    def room(self, num_running: int) -> int:
        """Return how many array tasks may be submitted: within an array Slurm enforces the limit, across arrays this does.

        An array task that delivered its results counts until Slurm reports its end. A pass begins when no array task of an
        earlier pass is left; those that do not end by themselves are cancelled.
        """
        limit, now = self.options.at_once, time.monotonic()
        if limit is None:
            return UNLIMITED
        if num_running >= limit or now - self.checked < ROOM_SECONDS:
            return 0
        self.checked = now
        active = [i for i, state in _squeue([self.name]).items() if state != "COMPLETING" and not _OVER.match(state)]
        if num_running or not active:
            self.ending_since = None
            return max(limit - len(active), 0) if active else UNLIMITED
        self.ending_since = self.ending_since or now
        if now - self.ending_since > ENDING_SECONDS:
            _scancel(active)
        return 0

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """Submit one array, or a plain job for a single share."""
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(
            name=self.name,
            timeout_min=self.options.minutes,
            cpus_per_task=self.options.cpus,
            mem_gb=self.options.memory_gib,
            stderr_to_stdout=True,
            slurm_partition=self.options.partition or _own_setting("PARTITION"),
            slurm_account=_own_setting("ACCOUNT"),
            slurm_qos=_own_setting("QOS"),
            slurm_array_parallelism=self.options.at_once or len(shares),
            slurm_signal_delay_s=min(NOTICE_SECONDS, self.options.minutes * 15),
            # the driver resubmits only the unfinished part of a dead array task; Slurm would repeat all of it
            slurm_additional_parameters={"no-requeue": True},
        )
        self.submitted = self.queried = time.monotonic()
        self.missing = set()
        with _user_environment():
            try:
                jobs = list(executor.map_array(do_share, shares))
            except (UncompletedJobError, OSError) as error:
                kind = ControllerAwayError if _AWAY.search(str(error)) else BackendError
                raise kind(f"sbatch refused the array: {' '.join(str(error).split())[-500:]}") from None
        self.arrays |= {array_of(job.job_id) for job in jobs}
        return jobs

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """Query squeue once for all jobs, less often the longer an array runs. A job is over after two equal answers in a row.

        An array of this name that is not ours was created by an sbatch that did not answer in time, and is cancelled.
        """
        now = time.monotonic()
        if now - self.queried < min(max((now - self.submitted) / 20, 1.0), 30.0):
            return {}
        self.queried = now
        try:
            states = _squeue([self.name])
        except ControllerAwayError:
            return {}
        mine = {job.job_id for job in jobs}
        _scancel([i for i, state in states.items() if array_of(i) not in self.arrays and not _OVER.match(state)])
        gone = {i: states.get(i, "gone") for i in mine if _OVER.match(states.get(i, "CANCELLED"))}
        sure = {i: state for i, state in gone.items() if i in self.missing}
        self.missing = set(gone)
        return sure

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """Cancel until squeue shows none of them; without jobs and folders, they first get time to end by themselves."""
        mine = {job.job_id for job in jobs}
        old = [f"{self.name.rpartition('-')[0]}-{int(folder.parent.name)}" for folder in folders]
        began = time.monotonic()
        gentle_seconds = 0.0 if jobs or folders else ENDING_SECONDS
        while True:
            try:
                current = {i: state for i, state in _squeue([self.name]).items() if state != "COMPLETING" or i in mine}
                alive = [i for i, state in (current | (_squeue(old) if old else {})).items() if not _OVER.match(state)]
                if not alive:
                    return
                if time.monotonic() - began >= gentle_seconds:
                    _scancel(alive)
                reason = f"{len(alive)} array tasks are still running ({', '.join(alive[:5])})"
            except ControllerAwayError as error:
                reason = str(error)
            if time.monotonic() - began > CLEAR_SECONDS:
                raise BackendError(f"{reason}; they end by themselves once their driver is gone, or cancel them with scancel")
            time.sleep(0.5)


def array_of(identity: str) -> str:
    """Return the id of the array that an array task belongs to."""
    return identity.partition("_")[0]


def _own_setting(option: str) -> str | None:
    return os.environ.get(f"SBATCH_{option}") or os.environ.get(f"SLURM_JOB_{option}") or None


@contextmanager
def _user_environment() -> Iterator[None]:
    """Submit from an environment without the variables of the driver's job, except those that identify the cluster."""
    cluster = {name: os.environ[name] for name in CLUSTER_VARIABLES if name in os.environ}
    with importing_this_program(), clean_env(extra_names=("TMPDIR", STOP_VARIABLE)):
        os.environ.update(cluster)
        yield


def _squeue(names: Sequence[str]) -> dict[str, str]:
    """Return id → state of every array task with these job names that Slurm still lists."""
    selection = [f"--user={os.getuid()}", f"--name={','.join(names)}"]
    text = _run(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", *selection])
    return dict(line.split("|", 1) for line in text.split())


def _scancel(identities: Sequence[str]) -> None:
    if identities:
        _run(["scancel", "--quiet", *identities])


def _run(command: list[str]) -> str:
    # a user's defaults could hide array tasks or prompt
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ControllerAwayError(f"{command[0]} did not answer in {COMMAND_SECONDS:.0f} s") from None
    except FileNotFoundError:
        raise BackendError(f"{command[0]}: no such command; fanout=array needs Slurm's commands on the driver's node") from None
    if done.returncode != 0 and command[0] == "squeue":
        raise ControllerAwayError(f"squeue: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
    return done.stdout
