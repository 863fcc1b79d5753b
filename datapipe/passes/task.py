"""One piece of work on a data set, as the driver hands it out. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Any

WORK = ".work"  # in the output: folder of the files that tasks leave for each other
SINGLE_THREADED = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # there is one worker per core
DEATHS_A_TASK = 3  # deaths of processes that run a task, after which the task is to blame


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work, its arguments, and its label in errors.

    `method` is a method of `Worker`, or `module:function` of a module that is not imported there; the first arguments of such
    a function are the data set's output and work area.
    """

    method: str
    label: str
    arguments: tuple[Any, ...]
