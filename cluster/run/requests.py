"""What users ask of a run while it goes on, on disk, so that the run's supervisor finds it."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.files import read_json, write_json


class Requests:
    """A small file of keys and values. The supervisor makes the file before anybody asks, and so sees at once what is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> Any:
        """Return the value that a user asked for under `key`, or None."""
        return (read_json(self.path) or {}).get(key)

    def put(self, key: str, value: Any) -> None:
        """Ask for a value under `key`; None withdraws what was asked."""
        asked = {**(read_json(self.path) or {}), key: value}
        write_json(self.path, {name: value for name, value in asked.items() if value is not None})

    def make(self) -> None:
        """Make the file, empty, before anybody asks: a client of NFS believes for a minute that a missing name stays missing."""
        read_afresh(self.path)
