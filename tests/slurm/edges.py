"""Wrappers of Slurm's real commands: counters, lost answers, and a controller that forgets."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence

from ropewalk.slurm.commands import Slurm, run_command
from ropewalk.slurm.lab.cluster import Lab

Done = subprocess.CompletedProcess[str]


class Recorder:
    """Runs every command for real, and remembers which."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, command: Sequence[str], seconds: float) -> Done:
        self.asked.append(list(command))
        return run_command(command, seconds)

    def count(self) -> dict[str, int]:
        """Number of runs of each command since the last call."""
        result = Counter(command[0] for command in self.asked)
        self.asked.clear()
        return dict(result)


class Unlucky(Recorder):
    """The first sbatch does what it does, but its answer is lost."""

    def __init__(self, accident: Callable[[Sequence[str]], Done]) -> None:
        super().__init__()
        self.accident = accident

    def __call__(self, command: Sequence[str], seconds: float) -> Done:
        done = super().__call__(command, seconds)
        first = command[0] == "sbatch" and sum(item[0] == "sbatch" for item in self.asked) == 1
        return self.accident(command) if first else done


def times_out(arguments: Sequence[str]) -> Done:
    raise subprocess.TimeoutExpired(arguments, 60)


def socket_times_out(arguments: Sequence[str]) -> Done:
    text = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    return subprocess.CompletedProcess(arguments, 1, "", text)


def dies(arguments: Sequence[str]) -> Done:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(arguments)


def forget(lab: Lab) -> None:
    """The controller is killed and comes back with no memory of any job; ids begin at 1 again."""
    lab.kill_controller()
    for path in (lab.folder / "state").glob("job_state*"):
        path.unlink()
    lab.start_controller()


def jobs_with(key: str) -> list[str]:
    """Ids of all jobs with this comment."""
    return [job.id for job in Slurm().my_jobs() if job.comment == key]
