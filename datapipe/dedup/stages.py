"""Stages of work over all documents: their tasks, which of them are done, and where that is written."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import orjson

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.streams import naming_full_disk


class StageTask(Protocol):
    """A task of a stage: a pure function of the work area, which names itself."""

    folder: ClassVar[str]  # below the work area, of all that the stages leave for each other

    @property
    def name(self) -> str:
        """The name of the task, which no other of the folder has."""
        ...

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write what comes next, and return what is counted."""
        ...


RunStage = Callable[[str, Sequence[StageTask]], Iterable[tuple[StageTask, dict[str, Any]]]]


def done_name(task: StageTask) -> str:
    """The file that says that a task is done, below the work area, with its result."""
    return f"{task.folder}/done/{task.name}.json"


def run_stage_task(task: StageTask, work: StoragePath) -> dict[str, Any]:
    """Do a task and commit its result."""
    with naming_full_disk(work.url):
        result = task.run(work)
        work.write(done_name(task), orjson.dumps(result))
    return result


class Stages:
    """Does the tasks of a stage that are not done yet."""

    def __init__(self, work: StoragePath, folder: str, run: RunStage) -> None:
        self.work, self.run = work, run
        self.present = set(work.names(f"{folder}/done"))

    def do(self, label: str, tasks: Sequence[StageTask]) -> list[dict[str, Any]]:
        """The results of all tasks, in their order."""
        results: dict[str, dict[str, Any]] = {}
        for task in tasks:
            if f"{task.name}.json" in self.present:
                results[task.name] = orjson.loads(self.work.read(done_name(task)))
        for task, result in self.run(label, [task for task in tasks if task.name not in results]):
            results[task.name] = result
        return [results[task.name] for task in tasks]
