"""What users ask of a run while it goes on: an intention on disk, so that whoever carries the run finds it."""

from pathlib import Path
from typing import Any

from cluster.fresh_reads import read_afresh
from cluster.run.files import read_json, write_json


class Requests:
    """A small file of words and values. Whoever carries the run has it made, and so sees at once what is written into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, word: str) -> Any:
        """What is asked, or None."""
        return (read_json(self.path) or {}).get(word)

    def put(self, word: str, value: Any) -> None:
        """Ask for something; None: no longer."""
        words = {**(read_json(self.path) or {}), word: value}
        write_json(self.path, {key: value for key, value in words.items() if value is not None})

    def make(self) -> None:
        """Have the file there, empty, before anybody asks: a client of NFS believes for a minute that a name is not there."""
        read_afresh(self.path)
