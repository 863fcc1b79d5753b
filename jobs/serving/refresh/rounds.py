"""Recorded facts of each round, in a file that outlives the driver."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json

FOLDER = "rounds"  # in the run's directory
_FILE = "round.json"


class Round:
    """Facts of one round, numbered from 1. A restarted driver finds what was recorded."""

    def __init__(self, context: JobContext, number: int) -> None:
        self.context, self.number = context, number
        self.folder = context.run.path / FOLDER / f"{number:04d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = read_json(self.folder / _FILE) or {"round": number}

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the recorded fact of this name; record the result of `compute` if there is none."""
        if name not in self.facts:
            self.record(name, compute())
        return self.facts[name]

    def record(self, name: str, value: Any) -> None:
        """Record a fact. Raises StaleAttemptError if another driver has taken over."""
        self.context.fence.check()
        self.facts[name] = value
        write_json(self.folder / _FILE, self.facts)

    @property
    def over(self) -> bool:
        """Return True if the round has an outcome."""
        return "outcome" in self.facts


def read_rounds(run: RunDir) -> list[dict[str, Any]]:
    """Return the facts of all rounds so far, in order."""
    folder: Path = run.path / FOLDER
    files = sorted(folder.glob(f"*/{_FILE}")) if folder.is_dir() else []
    return [facts for file in files if (facts := read_json(file))]
