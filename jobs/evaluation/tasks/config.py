"""Tasks by name: files, built-in tasks, and those of lm-eval. Light to import, for configurations."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import AfterValidator

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import Fetched, PathView, absolute

BUILT_IN = Path(__file__).with_name("built_in")  # a NAME.yaml each; their items are files of the user
_SUFFIXES = (".yaml", ".yml")


class TaskKeys(Protocol):
    """The keys of a configuration with tasks."""

    @property
    def tasks(self) -> Sequence[str]:
        """Files, names of built-in tasks, or names of lm-eval's tasks."""
        ...

    @property
    def task_files(self) -> Mapping[str, str]:
        """Item files of built-in tasks, by name."""
        ...

    @property
    def limit(self) -> int | None:
        """Maximum items of each task, from its beginning; None: all."""
        ...

    @property
    def fewshot(self) -> int | None:
        """Examples before each item; None: as the task defines, or else none."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the few-shot examples."""
        ...


def _task(reference: str) -> str:
    return absolute(reference) if is_file(reference) else reference


def is_file(reference: str) -> bool:
    """Return True if a task is given as a file."""
    return reference.endswith(_SUFFIXES)


Task = Annotated[str, AfterValidator(_task), Fetched("file")]


def check_tasks(tasks: Sequence[str], files: Mapping[str, str], here: PathView = Path) -> None:
    """Raise ConfigError unless local files exist, built-in tasks have item files, and the hub has the data of other names."""
    for key, path in [*(("tasks", t) for t in tasks if is_file(t)), *files.items()]:
        local = here(path) if path.startswith("/") else None
        if local is not None and not local.is_file():
            raise ConfigError(f"{key}: there is no file {path}")
    for name in tasks:
        check_task(name, files)
    if names := [name for name in tasks if not is_file(name) and name not in built_in_tasks()]:
        _require_hub(names)


def _require_hub(tasks: Sequence[str]) -> None:
    from ropewalk.cluster.hub.source import HubUnreachableError, endpoint, reach_hub  # imports huggingface_hub

    try:
        reach_hub()
    except HubUnreachableError as error:
        raise ConfigError(
            f"tasks: lm-eval loads the data of {', '.join(tasks)} from the hub in the run, and the hub ({endpoint()}) cannot be"
            f" reached ({error}); name one of {', '.join(built_in_tasks())} with a file of items (task_files; `ropewalk fetch`"
            " brings it), or a task file with local data, or set HF_ENDPOINT to a mirror"
        ) from None


def built_in_tasks() -> list[str]:
    """Return the names of the built-in tasks."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def ask_hub(tasks: Sequence[str]) -> bool:
    """Return True if the data of a task may be on the hub: a task of lm-eval, or a file that names a data set."""
    return any(name not in built_in_tasks() for name in tasks)


def check_task(name: str, files: Mapping[str, str]) -> None:
    """Raise ConfigError for a built-in task without an item file, or for an item file of an unknown task."""
    built_in = built_in_tasks()
    if name in built_in and name not in files:
        raise ConfigError(f"tasks: {name} needs a file with its items: task_files.{name}=FILE (json, jsonl or parquet)")
    if unknown := [key for key in files if key not in built_in]:
        near = difflib.get_close_matches(unknown[0], built_in, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"task_files: {unknown[0]!r} is not a built-in task{hint}; built-in tasks: {', '.join(built_in)}")
