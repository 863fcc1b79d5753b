"""Stages of work over all documents: tasks whose results are committed to the work area, so that a restart skips them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import orjson

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.streams import naming_full_disk


class StageTask(Protocol):
    """A task of a stage: a pure function of the work area."""

    folder: ClassVar[str]  # folder of the work area for the intermediate files of the stages

    @property
    def name(self) -> str:
        """Name of the task, unique in its folder."""
        ...

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Run the task: write its outputs, return its counters."""
        ...


RunStage = Callable[[str, Sequence[StageTask]], Iterable[tuple[StageTask, dict[str, Any]]]]


def done_name(task: StageTask) -> str:
    """Path of a finished task's result in the work area."""
    return f"{task.folder}/done/{task.name}.json"


def run_stage_task(task: StageTask, work: StoragePath) -> dict[str, Any]:
    """Run a task and commit its result."""
    with naming_full_disk(work.url):
        result = task.run(work)
        work.write(done_name(task), orjson.dumps(result))
    return result


class Stages:
    """Runs the tasks of stages, except those that an earlier attempt finished."""

    def __init__(self, work: StoragePath, folder: str, run: RunStage) -> None:
        self.work, self.run = work, run
        self.present = set(work.names(f"{folder}/done"))

    def do(self, label: str, tasks: Sequence[StageTask]) -> list[dict[str, Any]]:
        """Run the unfinished tasks and return the results of all, in order."""
        results: dict[str, dict[str, Any]] = {}
        for task in tasks:
            if f"{task.name}.json" in self.present:
                results[task.name] = orjson.loads(self.work.read(done_name(task)))
        for task, result in self.run(label, [task for task in tasks if task.name not in results]):
            results[task.name] = result
        return [results[task.name] for task in tasks]
