"""Array tasks as processes of this machine, through submitit's local executor with a limit on concurrent ones."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import submitit

from ropewalk.cluster.process.kill import end, family, processes_of
from ropewalk.datapipe.execution.array_task import Share, do_share
from ropewalk.datapipe.execution.config import ArrayOptions
from ropewalk.datapipe.execution.executor import NOTICE_SECONDS, importing_this_program


class LocalProcesses:
    """Runs at most `array.at_once` array tasks at a time, each in a child process of submitit's."""

    same_machine = True

    def __init__(self, options: ArrayOptions, cpus: int) -> None:
        self.options = options
        self.at_once = options.at_once or cpus

    def num_array_tasks(self, num_tasks: int) -> int:
        """Return `array.jobs`, else the number that may run at once."""
        return min(num_tasks, self.options.jobs or self.at_once)

    def room(self, num_running: int) -> int:
        return max(self.at_once - num_running, 0)

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        executor = submitit.LocalExecutor(folder=folder)  # the automatic one ignores the notice
        notice = min(NOTICE_SECONDS, self.options.minutes * 15)
        executor.update_parameters(timeout_min=self.options.minutes, signal_delay_s=notice, stderr_to_stdout=True)
        with importing_this_program():
            return list(executor.map_array(do_share, shares))

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        return {job.job_id: "its process ended" for job in jobs if job.done()}

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """Kill the processes of these jobs, and those that run in these folders."""
        doomed: list[psutil.Process] = [p for job in jobs if not job.done() for p in family(int(job.job_id))]
        for folder in folders:
            doomed += processes_of(folder)
        end(doomed)
        for job in jobs:
            while not job.done():
                time.sleep(0.01)
