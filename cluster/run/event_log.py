"""Event log of a run: a folder with one file per machine, since two machines must not append to the same file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.files import append_lines, machine, read_lines

STOPPED_UNSAVED = "stopped_without_word"  # event: a program exited after a stop without saving


class EventLog:
    """Folder of JSON-lines files, read as one list sorted by time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, *lines: dict[str, Any]) -> None:
        path = self.folder / f"{machine()}.jsonl"
        try:
            append_lines(path, lines)
        except FileNotFoundError:  # the folder is missing, or this machine's NFS client does not see it yet
            self.folder.mkdir(exist_ok=True)
            append_lines(path, lines)

    def files(self, *, afresh: bool = False) -> list[Path]:
        """List the machines' files. `afresh`: include files that another machine has just created."""
        if afresh:
            with suppress(OSError):  # makes an NFS client notice an existing folder that it has cached as missing
                self.folder.mkdir(exist_ok=True)
        try:
            names = list_afresh(self.folder) if afresh else os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(names) if name.endswith(".jsonl")]

    def read(self, *, afresh: bool = False) -> list[dict[str, Any]]:
        """Read all events, sorted by time. `afresh`: include events that other machines have just written, for decisions."""
        lines = [line for path in self.files(afresh=afresh) for line in read_lines(path)]
        return sorted((line for line in lines if is_event(line)), key=lambda line: float(line["time"]))


def is_event(line: dict[str, Any]) -> bool:
    """Return True if a line has the keys of an event; a damaged line may not have them."""
    return isinstance(line.get("event"), str) and isinstance(line.get("time"), int | float)
