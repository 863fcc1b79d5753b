"""A pool of array tasks: work is submitted in shares, what dead ones left is submitted anew, nothing is left running.

Results come back one by one as files, so that they count while array tasks run, and none is made twice.
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
from ropewalk.datapipe.passes.worker import DEATHS_A_TASK, Task

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
LEASE_TOUCH_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # with a controller that does not answer
LOG_LINES = 5

_NOT_ITS_FAULT = ("PREEMPTED", "REVOKED")


def choose_executor(options: ArrayOptions, name: str, cpus: int) -> Executor:
    """Slurm if this process runs in a Slurm job, else processes of this machine."""
    return SlurmArray(options, name) if os.environ.get("SLURM_JOB_ID") else LocalProcesses(options, cpus)


class ArrayPool:
    """Submits an array for each pass over one data set. Use it as a context: leaving it ends what runs, and removes all but logs.

    `urls` are the data set's and its working folder's. `folder` is this attempt's, on a file system that the array tasks
    see. `on_submit` is called for every array: its stage (a folder in `folder`, with its logs), its ids and its size.
    """

    def __init__(
        self,
        urls: tuple[str, str],
        executor: Executor,
        folder: Path,
        *,
        stop: Callable[[], bool],
        on_submit: Callable[..., None],
    ) -> None:
        self.urls, self.executor, self.folder, self.stop, self.on_submit = urls, executor, folder, stop, on_submit
        self.running: dict[str, tuple[Any, Share]] = {}
        self.handles: list[str] = []
        self.deaths = 0
        self.touched = self.answered = float("-inf")

    def __enter__(self) -> "ArrayPool":
        """End what earlier attempts left, and write this driver's lease."""
        found = [lease.parent for lease in self.folder.parent.parent.glob(f"*/{self.folder.name}/{LEASE}")]
        old = [folder for folder in found if folder <= self.folder]  # a successor's is its own
        self.executor.clear([], old)
        for folder in old:
            _tidy(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record()
        return self

    def __exit__(self, *_: object) -> None:
        jobs, self.running = [job for job, _ in self.running.values()], {}
        try:
            self.executor.clear(jobs, [])
        except BackendError as error:  # must not hide why we leave
            log.error("%s", error)
        _tidy(self.folder)

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result as it is done.

        Raises what a task raised; DataError for a task that killed three array tasks; StopRequested once a stop is
        requested: what is committed stays, what is under way is dropped. Leaving the context ends the rest.
        """
        folder = self._pass_folder(tasks)
        waiting = _cut(list(range(len(tasks))), self.executor.num_array_tasks(len(tasks)))
        deaths: dict[int, int] = {}
        seen: set[str] = set()
        while len(seen) < len(tasks) or self.running:
            if self.stop():
                raise StopRequested("asked to stop; committed units and shards stay")
            self._touch()
            self._submit(waiting, tasks, folder)
            over = self.executor.over([job for job, _ in self.running.values()])  # before looking for their results
            names = _list(folder)
            for name in sorted(n for n in names - seen if n.endswith(ENDING)):
                seen.add(name)
                yield tasks[int(name.removesuffix(ENDING))], pickle.loads((folder / name).read_bytes())  # noqa: S301 - ours
            waiting += self._collect(over, names, deaths)
            time.sleep(POLL_SECONDS)
        _tidy(folder)

    def _pass_folder(self, tasks: Sequence[Task]) -> Path:
        """A folder of its own for each pass, named for its place and for what it does."""
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
        """Remove the array tasks that ended from those that run; returns what they left undone. Raises what a task raised."""
        left = []
        for identity, (job, share) in list(self.running.items()):
            ended = job.paths.result_pickle.name in names and job.done()
            if not ended and identity not in over:
                continue
            del self.running[identity]
            rest = [number for number, _ in share.tasks if result_name(number) not in names]
            if ended:
                error = job.result().error  # raises submitit's error, with the traceback, for one that is not ours
                if error is not None:
                    raise error
            elif rest:
                self._count_death(share, rest[0], over[identity], job.paths.stdout, deaths)
            if rest:
                left.append(rest)
        return left

    def _count_death(self, share: Share, number: int, word: str, output: Path, deaths: dict[int, int]) -> None:
        task = dict(share.tasks)[number]
        self.deaths += 1
        deaths[number] = deaths.get(number, 0) + (word not in _NOT_ITS_FAULT)
        last = _last_lines(output)
        if deaths[number] >= DEATHS_A_TASK:
            raise DataError(
                f"{task.label}: killed {deaths[number]} array tasks ({word}; {output}); if memory or time ran out give them"
                f" more (array.memory_gib, array.minutes), else check this input; committed work is kept{last}"
            )
        log.warning("%s: its array task died (%s); another one takes over%s", task.label, word, last)

    def _record(self) -> None:
        """Write what this driver started into its lease: a successor ends it."""
        write_json(self.folder / LEASE, {"pid": os.getpid(), "jobs": self.handles})
        self.touched = time.monotonic()

    def _touch(self) -> None:
        if time.monotonic() - self.touched > LEASE_TOUCH_SECONDS:
            os.utime(self.folder / LEASE)
            self.touched = time.monotonic()


def _cut(numbers: list[int], num_shares: int) -> list[list[int]]:
    """Shares of nearly equal size; neighbours go to different ones, since sizes often fall from first to last."""
    return [numbers[first::num_shares] for first in range(num_shares)]


def _list(folder: Path) -> set[str]:
    folder.chmod(folder.stat().st_mode & 0o7777)  # makes a network file system forget its old listing
    return set(os.listdir(folder))


def _tidy(folder: Path) -> None:
    """Remove all but logs and scripts; also what killed array tasks have written in part, under other names."""
    for path in (folder / LEASE, *folder.rglob("*.pkl*"), *folder.rglob(f"*{ENDING}*")):
        path.unlink(missing_ok=True)


def _last_lines(output: Path) -> str:
    try:
        lines = output.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines)
