"""What happened in a run, in a folder with one file a machine: no two machines ever append to the same file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.files import append_lines, machine, read_lines

STOPPED_UNSAVED = "stopped_without_word"  # a program ended after the stop, and did not say that it has saved


class EventLog:
    """A folder of JSON-lines files, read as one list by time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, *lines: dict[str, Any]) -> None:
        """Append events to this machine's file."""
        path = self.folder / f"{machine()}.jsonl"
        try:
            append_lines(path, lines)
        except FileNotFoundError:  # the first event of the run, or a client of NFS that believes so
            self.folder.mkdir(exist_ok=True)
            append_lines(path, lines)

    def files(self, *, afresh: bool = False) -> list[Path]:
        """List the machines' files. With `afresh` also a file that another machine has only just made."""
        if afresh:
            with suppress(OSError):  # a client of NFS believes for a minute that there is no folder, unless it would make it
                self.folder.mkdir(exist_ok=True)
        try:
            names = list_afresh(self.folder) if afresh else os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(names) if name.endswith(".jsonl")]

    def read(self, *, afresh: bool = False) -> list[dict[str, Any]]:
        """Read all events, by time. Use `afresh` where something is decided by them: it sees what other machines just wrote."""
        found = [line for path in self.files(afresh=afresh) for line in read_lines(path)]
        return sorted((line for line in found if is_event(line)), key=lambda line: float(line["time"]))


def is_event(line: dict[str, Any]) -> bool:
    """Return whether a line is an event with a time: a line that two machines wrote over each other may not be."""
    return isinstance(line.get("event"), str) and isinstance(line.get("time"), int | float)
