"""Tasks by name: files, those of this program, those of lm-eval. Light to import: for configurations."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AfterValidator

from ropewalk.cluster.config import PathView, absolute
from ropewalk.cluster.errors import ConfigError

BUILT_IN = Path(__file__).with_name("built_in")  # NAME.yaml each; they read files that the user has
_SUFFIXES = (".yaml", ".yml")


class TaskKeys(Protocol):
    """What a configuration says of the tasks that it names."""

    @property
    def tasks(self) -> Sequence[str]:
        """Files, names of this program's own, or names of lm-eval's."""
        ...

    @property
    def task_files(self) -> Mapping[str, str]:
        """Where the items of this program's own tasks lie."""
        ...

    @property
    def limit(self) -> int | None:
        """Items of each task, from its beginning; None: all."""
        ...

    @property
    def fewshot(self) -> int | None:
        """Examples before each item; None: as the task says, else none."""
        ...

    @property
    def seed(self) -> int:
        """Of the examples."""
        ...


def _task(word: str) -> str:
    return absolute(word) if is_file(word) else word


def is_file(word: str) -> bool:
    """Whether a task is named by its file."""
    return word.endswith(_SUFFIXES)


Task = Annotated[str, AfterValidator(_task)]


def check_tasks(tasks: Sequence[str], files: Mapping[str, str], here: PathView = Path) -> None:
    """Raise ConfigError unless local files are there, and the tasks of this program have one each."""
    for key, path in [*(("tasks", t) for t in tasks if is_file(t)), *files.items()]:
        local = here(path) if path.startswith("/") else None
        if local is not None and not local.is_file():
            raise ConfigError(f"{key}: there is no file {path}")
    for name in tasks:
        check_task(name, files)


def built_in_tasks() -> list[str]:
    """The names of this program's own tasks."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def check_task(name: str, files: Mapping[str, str]) -> None:
    """Raise ConfigError for a task of this program's own whose items' file is not named, or a name that is nearly one."""
    known = built_in_tasks()
    if name in known and name not in files:
        raise ConfigError(f"tasks: {name} reads a file of yours; name it: task_files.{name}=FILE (json, jsonl or parquet)")
    if unknown := [key for key in files if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"task_files: {unknown[0]!r} is no task of this program{hint}; its tasks: {', '.join(known)}")
