"""What is settled of a round: each fact once, in a file that outlives the driver."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json

FOLDER = "rounds"  # in the run's directory
_FILE = "round.json"


class Round:
    """One round, by its number from 1. Whoever goes on after a kill finds what was settled."""

    def __init__(self, context: JobContext, number: int) -> None:
        self.context, self.number = context, number
        self.folder = context.run.path / FOLDER / f"{number:04d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = read_json(self.folder / _FILE) or {"round": number}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The fact that was settled under this name, else what `find` says now, which is settled by that."""
        if name not in self.facts:
            self.settle(name, find())
        return self.facts[name]

    def settle(self, name: str, value: Any) -> None:
        """Write a fact down. Raises StaleAttemptError where another driver has taken over."""
        self.context.fence.check()
        self.facts[name] = value
        write_json(self.folder / _FILE, self.facts)

    @property
    def over(self) -> bool:
        """Whether the round has an outcome."""
        return "outcome" in self.facts


def read_rounds(run: RunDir) -> list[dict[str, Any]]:
    """The facts of every round so far, in order."""
    folder: Path = run.path / FOLDER
    files = sorted(folder.glob(f"*/{_FILE}")) if folder.is_dir() else []
    return [facts for file in files if (facts := read_json(file))]
