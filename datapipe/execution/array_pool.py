"""Pool of array tasks: work is submitted in shares, unfinished work of dead ones is resubmitted, nothing is left running.

Results come back one by one as files, so that each counts as soon as it exists, and none is computed twice.
"""

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.errors import BackendError, DataError, StopRequested
from ropewalk.cluster.run.files import write_json
from ropewalk.datapipe.execution.array_task import ENDING, LEASE, Share, result_name
from ropewalk.datapipe.execution.config import ArrayOptions
from ropewalk.datapipe.execution.executor import ControllerAwayError, Executor
from ropewalk.datapipe.execution.local_processes import LocalProcesses
from ropewalk.datapipe.execution.slurm_array import SlurmArray, array_of
from ropewalk.datapipe.passes.task import DEATHS_A_TASK, Task

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
LEASE_TOUCH_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # with a Slurm controller that does not answer
LOG_LINES = 5

_BLAMELESS = ("PREEMPTED", "REVOKED")


def choose_executor(options: ArrayOptions, name: str, cpus: int) -> Executor:
    """Return Slurm if this process runs in a Slurm job, else processes of this machine."""
    return SlurmArray(options, name) if os.environ.get("SLURM_JOB_ID") else LocalProcesses(options, cpus)


class ArrayPool:
    """Submits an array for each pass over one data set; a context manager that ends its array tasks and removes all but logs.

    `urls` are those of the data set and its work area. `folder` belongs to this attempt and must be on a file system that the
    array tasks share. `on_submit` is called for every array with its stage (a folder in `folder`, with its logs), ids and size.
    """

    def __init__(
        self, urls: tuple[str, str], executor: Executor, folder: Path, *, stop: Callable[[], bool], on_submit: Callable[..., None]
    ) -> None:
        self.urls, self.executor, self.folder, self.stop, self.on_submit = urls, executor, folder, stop, on_submit
        self.running: dict[str, tuple[Any, Share]] = {}
        self.handles: list[str] = []
        self.deaths = 0
        self.touched = self.answered = float("-inf")

    def __enter__(self) -> "ArrayPool":
        """End the array tasks of earlier attempts, and write this driver's lease."""
        leased = [lease.parent for lease in self.folder.parent.parent.glob(f"*/{self.folder.name}/{LEASE}")]
        old = [folder for folder in leased if folder <= self.folder]  # never those of a later attempt
        self.executor.clear([], old)
        for folder in old:
            _tidy(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_running()
        _tidy(self.folder)

    def _end_running(self) -> None:
        jobs, self.running = [job for job, _ in self.running.values()], {}
        try:
            self.executor.clear(jobs, [])
        except BackendError as error:  # must not hide the original error
            log.error("%s", error)

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result when it is done.

        Raises the error of a task; DataError for a task that killed three array tasks; StopRequested once a stop is requested:
        committed work is kept, work in progress is discarded. Leaving the context ends the remaining array tasks.
        """
        folder = self._pass_folder(tasks)
        waiting = _cut(list(range(len(tasks))), self.executor.num_array_tasks(len(tasks)))
        deaths: dict[int, int] = {}
        results: set[str] = set()
        while len(results) < len(tasks) or self.running:
            if self.stop():
                raise StopRequested("asked to stop; committed units and shards are kept")
            self._touch()
            self._submit(waiting, tasks, folder)
            over = self.executor.over([job for job, _ in self.running.values()])  # before looking for their results
            names = _list(folder)
            for name in sorted(n for n in names - results if n.endswith(ENDING)):
                results.add(name)
                yield tasks[int(name.removesuffix(ENDING))], pickle.loads((folder / name).read_bytes())  # noqa: S301 - ours
            waiting += self._collect(over, names, deaths)
            time.sleep(POLL_SECONDS)
        _tidy(folder)

    def _pass_folder(self, tasks: Sequence[Task]) -> Path:
        """Create a folder for a pass, named by its number and its method."""
        number = sum(1 for path in self.folder.iterdir() if path.is_dir())
        folder = self.folder / f"{number}-{tasks[0].method}"
        folder.mkdir()
        return folder

    def _submit(self, waiting: list[list[int]], tasks: Sequence[Task], folder: Path) -> None:
        if not waiting:
            return
        try:
            cuts = waiting[: self.executor.room(len(self.running))]
            if not cuts:
                return
            shares = [self._share(cut, tasks, folder) for cut in cuts]
            jobs = self.executor.submit(folder, shares)
        except ControllerAwayError as error:
            if self.answered == float("-inf"):
                self.answered = time.monotonic()
            if time.monotonic() - self.answered > PATIENCE_SECONDS:
                raise
            log.warning("%s; trying again", error)
            return
        self.answered = float("-inf")
        del waiting[: len(cuts)]
        self.running |= {job.job_id: (job, share) for job, share in zip(jobs, shares, strict=True)}
        roots = sorted({array_of(job.job_id) for job in jobs})
        self.handles += roots
        self._record()
        self.on_submit(jobs=roots, elements=len(jobs), stage=folder.name)

    def _share(self, cut: list[int], tasks: Sequence[Task], folder: Path) -> Share:
        return Share(
            output_url=self.urls[0],
            work_url=self.urls[1],
            tasks=tuple((number, tasks[number]) for number in cut),
            folder=folder,
            lease=self.folder / LEASE,
            driver=(os.getpid(), psutil.Process().create_time()) if self.executor.same_machine else None,
        )

    def _collect(self, over: dict[str, str], names: set[str], deaths: dict[int, int]) -> list[list[int]]:
        """Remove ended array tasks from the running ones; return their unfinished tasks. Raises the error of a task."""
        left = []
        for identity, (job, share) in list(self.running.items()):
            has_result = job.paths.result_pickle.name in names and job.done()
            if not has_result and identity not in over:
                continue
            del self.running[identity]
            rest = [number for number, _ in share.tasks if result_name(number) not in names]
            if has_result:
                error = job.result()  # an unexpected error is raised by submitit, with its traceback
                if error is not None:
                    self._end_running()
                    raise error
            elif rest:
                self._count_death(share, rest[0], over[identity], job.paths.stdout, deaths)
            if rest:
                left.append(rest)
        return left

    def _count_death(self, share: Share, number: int, state: str, output: Path, deaths: dict[int, int]) -> None:
        task = dict(share.tasks)[number]
        self.deaths += 1
        deaths[number] = deaths.get(number, 0) + (state not in _BLAMELESS)
        last = _last_lines(output)
        if deaths[number] >= DEATHS_A_TASK:
            raise DataError(
                f"{task.label}: killed {deaths[number]} array tasks ({state}; {output}); if memory or time ran out, give them"
                f" more (array.memory_gib, array.minutes), otherwise check this input; committed work is kept{last}"
            )
        log.warning("%s: its array task died (%s); another one retries it%s", task.label, state, last)

    def _record(self) -> None:
        """Write this driver's array tasks to its lease, so that a later attempt can end them."""
        write_json(self.folder / LEASE, {"pid": os.getpid(), "jobs": self.handles})
        self.touched = time.monotonic()

    def _touch(self) -> None:
        if time.monotonic() - self.touched > LEASE_TOUCH_SECONDS:
            os.utime(self.folder / LEASE)
            self.touched = time.monotonic()


def _cut(numbers: list[int], num_shares: int) -> list[list[int]]:
    """Split numbers into shares of nearly equal size; neighbours go to different shares, since sizes often decrease."""
    return [numbers[first::num_shares] for first in range(num_shares)]


def _list(folder: Path) -> set[str]:
    folder.chmod(folder.stat().st_mode & 0o7777)  # makes a network file system refresh its listing
    return set(os.listdir(folder))


def _tidy(folder: Path) -> None:
    """Remove everything but logs and scripts, including partly written files of killed array tasks."""
    for path in (folder / LEASE, *folder.rglob("*.pkl*"), *folder.rglob(f"*{ENDING}*")):
        path.unlink(missing_ok=True)


def _last_lines(output: Path) -> str:
    try:
        lines = output.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines)
