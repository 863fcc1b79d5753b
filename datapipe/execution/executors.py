"""Where the elements of an array run, through submitit: a Slurm array watched by one squeue, or processes of this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import clean_env

import datapipe
from cluster.errors import BackendError
from cluster.process.kill import end, family, processes_of
from cluster.run.context import STOP_VARIABLE
from datapipe.config import ArrayOptions
from datapipe.execution.array_task import Share, do_share

UNLIMITED = sys.maxsize
ROOM_SECONDS = 0.5  # between two looks at whether elements whose results are there have ended
COMMAND_SECONDS = 60.0
CLEAR_SECONDS = 60.0
ENDING_SECONDS = 10.0  # from an element's last result to the end of its process
NOTICE_SECONDS = 90  # before the time limit
WHICH_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")  # and who we are to it

_OVER = re.compile(r"COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL|PREEMPTED|BOOT_FAIL|DEADLINE|OUT_OF_ME|REVOKED")
_AWAY = re.compile(r"unable to contact slurm controller|socket timed out|timed out|connection refused", re.IGNORECASE)


class ControllerAwayError(BackendError):
    """Slurm's controller does not answer just now."""


class Executor(Protocol):
    """Starts shares, and says which of them are over."""

    same_machine: bool  # elements can look for the driver's process

    def elements(self, tasks: int) -> int:
        """How many elements a pass of so many tasks is cut into."""
        ...

    def room(self, present: int) -> int:
        """How many more elements may be handed over while so many are at work. Raises ControllerAwayError."""
        ...

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """Hand the shares over; returns submitit's jobs. Raises BackendError."""
        ...

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """Ids of those jobs that surely do not run any more, with a word on why."""
        ...

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """End these jobs and whatever earlier attempts left in these folders; none runs on return. Raises BackendError."""
        ...


def array_of(identity: str) -> str:
    """The id of the array that an element belongs to."""
    return identity.partition("_")[0]


class SlurmArray:
    """Elements of Slurm arrays, in the partition and account of the job that the driver runs in."""

    same_machine = False

    def __init__(self, options: ArrayOptions, name: str) -> None:
        self.options, self.name = options, name
        self.submitted = self.asked = self.looked = float("-inf")
        self.ending_since: float | None = None
        self.missing: set[str] = set()
        self.arrays: set[str] = set()  # ids of all that it submitted

    def elements(self, tasks: int) -> int:
        """As asked, else 64, and no fewer than may run at once."""
        return min(tasks, self.options.jobs or max(64, self.options.at_once or 0))

    def room(self, present: int) -> int:
        """All, as Slurm keeps to the limit within one array; beside earlier arrays only what they leave free.

        An element whose results are there takes its place until Slurm says that it has ended; a pass begins without any,
        and ends those that do not end by themselves.
        """
        limit, now = self.options.at_once, time.monotonic()
        if limit is None:
            return UNLIMITED
        if present >= limit or now - self.looked < ROOM_SECONDS:
            return 0
        self.looked = now
        there = [i for i, word in _squeue([self.name]).items() if word != "COMPLETING" and not _OVER.match(word)]
        if present or not there:
            self.ending_since = None
            return max(limit - len(there), 0) if there else UNLIMITED
        self.ending_since = self.ending_since or now
        if now - self.ending_since > ENDING_SECONDS:
            _scancel(there)
        return 0

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """One array, or a plain job for one share."""
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(
            name=self.name,
            timeout_min=self.options.minutes,
            cpus_per_task=self.options.cpus,
            mem_gb=self.options.memory_gib,
            stderr_to_stdout=True,
            slurm_partition=self.options.partition or _inherited("PARTITION"),
            slurm_account=_inherited("ACCOUNT"),
            slurm_qos=_inherited("QOS"),
            slurm_array_parallelism=self.options.at_once or len(shares),
            slurm_signal_delay_s=min(NOTICE_SECONDS, self.options.minutes * 15),
            # a dead element is handed over anew by its driver, at once and without what it did already
            slurm_additional_parameters={"no-requeue": True},
        )
        self.submitted = self.asked = time.monotonic()
        self.missing = set()
        with _as_a_user_would():
            try:
                jobs = list(executor.map_array(do_share, shares))
            except (UncompletedJobError, OSError) as error:
                kind = ControllerAwayError if _AWAY.search(str(error)) else BackendError
                raise kind(f"sbatch refused the array: {' '.join(str(error).split())[-500:]}") from None
        self.arrays |= {array_of(job.job_id) for job in jobs}
        return jobs

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """One squeue for all, the rarer the longer an array runs. What was over at two in a row is over.

        An array that nobody knows, since sbatch made it but did not say so in time, is cancelled.
        """
        now = time.monotonic()
        if now - self.asked < min(max((now - self.submitted) / 20, 1.0), 30.0):
            return {}
        self.asked = now
        try:
            words = _squeue([self.name])
        except ControllerAwayError:
            return {}
        mine = {job.job_id for job in jobs}
        _scancel([i for i, word in words.items() if array_of(i) not in self.arrays and not _OVER.match(word)])
        gone = {i: words.get(i, "gone") for i in mine if _OVER.match(words.get(i, "CANCELLED"))}
        sure = {i: word for i, word in gone.items() if i in self.missing}
        self.missing = set(gone)
        return sure

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """scancel until squeue shows none of them; without jobs or folders they are given the time to end."""
        mine = {job.job_id for job in jobs}
        old = [f"{self.name.rpartition('-')[0]}-{int(folder.parent.name)}" for folder in folders]
        began = time.monotonic()
        gentle_seconds = 0.0 if jobs or folders else ENDING_SECONDS
        while True:
            try:
                own = {i: word for i, word in _squeue([self.name]).items() if word != "COMPLETING" or i in mine}
                alive = [i for i, word in (own | (_squeue(old) if old else {})).items() if not _OVER.match(word)]
                if not alive:
                    return
                if time.monotonic() - began >= gentle_seconds:
                    _scancel(alive)
                reason = f"{len(alive)} array elements are still there ({', '.join(alive[:5])})"
            except ControllerAwayError as error:
                reason = str(error)
            if time.monotonic() - began > CLEAR_SECONDS:
                raise BackendError(f"{reason}; they end by themselves when they miss their driver, else use scancel")
            time.sleep(0.5)


class LocalProcesses:
    """Elements as processes of this machine: submitit's local executor, which by itself starts all at once."""

    same_machine = True

    def __init__(self, options: ArrayOptions, cpus: int) -> None:
        self.options = options
        self.at_once = options.at_once or cpus

    def elements(self, tasks: int) -> int:
        """As asked, else one a place."""
        return min(tasks, self.options.jobs or self.at_once)

    def room(self, present: int) -> int:
        """What is free of at_once."""
        return max(self.at_once - present, 0)

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """One process a share, below one of submitit's own."""
        executor = submitit.LocalExecutor(folder=folder)  # the automatic one does not pass the notice on
        notice = min(NOTICE_SECONDS, self.options.minutes * 15)
        executor.update_parameters(timeout_min=self.options.minutes, signal_delay_s=notice, stderr_to_stdout=True)
        with _importing_this_program():
            return list(executor.map_array(do_share, shares))

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """Those whose process has ended."""
        return {job.job_id: "its process ended" for job in jobs if job.done()}

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """Kill them."""
        doomed: list[psutil.Process] = [p for job in jobs if not job.done() for p in family(int(job.job_id))]
        for folder in folders:
            doomed += processes_of(folder)
        end(doomed)
        for job in jobs:
            while not job.done():
                time.sleep(0.01)


def _inherited(option: str) -> str | None:
    return os.environ.get(f"SBATCH_{option}") or os.environ.get(f"SLURM_JOB_{option}") or None


@contextmanager
def _importing_this_program() -> Iterator[None]:
    """Elements import the program from where the driver did, wherever they stand."""
    before = os.environ.get("PYTHONPATH")
    home = str(Path(datapipe.__file__).parent.parent)
    os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{before}" if before else home
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _as_a_user_would() -> Iterator[None]:
    """An environment free of the driver's own allocation, node and agent, but with the cluster's configuration."""
    kept = {name: os.environ[name] for name in WHICH_CLUSTER if name in os.environ}
    with _importing_this_program(), clean_env(extra_names=("TMPDIR", STOP_VARIABLE)):
        os.environ.update(kept)
        yield


def _squeue(names: Sequence[str]) -> dict[str, str]:
    """id → state of every element under these job names that Slurm still remembers."""
    wanted = [f"--user={os.getuid()}", f"--name={','.join(names)}"]
    text = _ask(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", *wanted])
    return dict(line.split("|", 1) for line in text.split())


def _scancel(identities: Sequence[str]) -> None:
    if identities:
        _ask(["scancel", "--quiet", *identities])


def _ask(command: list[str]) -> str:
    # a user's own defaults would hide elements, or ask questions
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ControllerAwayError(f"{command[0]} did not answer in {COMMAND_SECONDS:.0f} s") from None
    except FileNotFoundError:
        raise BackendError(f"{command[0]}: no such command; fanout=array needs Slurm's commands where the driver runs") from None
    if done.returncode != 0 and command[0] == "squeue":
        raise ControllerAwayError(f"squeue: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
    return done.stdout
