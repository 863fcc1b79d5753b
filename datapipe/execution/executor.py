"""Interface of an executor of array tasks: start them, list ended ones, cancel them."""

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
    """Slurm's controller does not answer at the moment."""


class Executor(Protocol):
    """Starts an array task for each share of a pass, and tracks which have ended."""

    same_machine: bool  # array tasks can check the driver's process

    def num_array_tasks(self, num_tasks: int) -> int: ...

    def room(self, num_running: int) -> int:
        """Return how many more array tasks may be submitted. Raises ControllerAwayError."""
        ...

    def submit(self, folder: Path, shares: Sequence[Share]) -> list[Any]:
        """Submit an array task for each share; return submitit's jobs. Raises BackendError."""
        ...

    def over(self, jobs: Sequence[Any]) -> dict[str, str]:
        """Return the ids of jobs that have certainly ended, each with its final state."""
        ...

    def clear(self, jobs: Sequence[Any], folders: Sequence[Path]) -> None:
        """End these jobs and those of earlier attempts in these folders; none runs on return. Raises BackendError."""
        ...


@contextmanager
def importing_this_program() -> Iterator[None]:
    """Make array tasks import the program from the same directory as the driver, independent of their working directory."""
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
