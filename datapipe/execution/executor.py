"""What an array runs on: starts its tasks, says which of them are over, and ends them."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ropewalk import datapipe
from ropewalk.cluster.errors import BackendError
from ropewalk.datapipe.execution.array_task import Share

UNLIMITED = sys.maxsize
NOTICE_SECONDS = 90  # from the signal to an array task to its time limit


class ControllerAwayError(BackendError):
    """Slurm's controller does not answer just now."""


class Executor(Protocol):
    """Starts an array task for each share of a pass, and says which array tasks are over."""

    same_machine: bool  # array tasks can look for the driver's process

    def num_array_tasks(self, num_tasks: int) -> int:
        """How many array tasks do a pass of so many tasks."""
        ...

    def room(self, num_running: int) -> int:
        """How many more array tasks may be submitted while so many run. Raises ControllerAwayError."""
        ...

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """Submit an array task for each share; returns submitit's jobs. Raises BackendError."""
        ...

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """The ids of those jobs that surely do not run any more, each with the reason."""
        ...

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """End these jobs, and those that earlier attempts left in these folders; none runs on return. Raises BackendError."""
        ...


@contextmanager
def importing_this_program() -> Iterator[None]:
    """Make array tasks import the program from where the driver did, whatever directory they start in."""
    before = os.environ.get("PYTHONPATH")
    home = str(Path(datapipe.__file__).parents[2])
    os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{before}" if before else home
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
