"""Ledger of completed work items of a run, so that a resumed run repeats only the items in progress."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_line, read_lines, sync_all

log = logging.getLogger(__name__)

KEY = "key"


class Ledger:
    """Records by key of all ranks and attempts of a run, in `ledger/NAME/*.jsonl`, one file per writer.

    A record survives a kill of the process once `add` has returned. Only the newest group of ranks can add records.
    """

    def __init__(self, context: JobContext, name: str) -> None:
        """Open the ledger and read its records. All writers of older groups must have exited or be fenced."""
        self._context = context
        self.folder = context.run.path / "ledger" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / f"attempt-{context.attempt:04d}-group-{context.group:06d}-rank-{context.rank:05d}.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the records of other ranks. Of two records with the same key, the older one is used."""
        for name in sorted(list_afresh(self.folder)):
            for line in read_lines(self.folder / name):
                if KEY in line:
                    self._records.setdefault(str(line[KEY]), line)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key, or None if it is not completed."""
        return self._records.get(key)

    @property
    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """All records by key."""
        return self._records

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a completed item; an existing record of the key is not changed. Raises StaleAttemptError."""
        if key in self._records:
            return
        self._context.fence.check()
        line = {KEY: key, **record}
        append_line(self._file, line)
        self._records[key] = line

    def sync(self) -> None:
        """Sync this rank's records to disk."""
        if Path(self._file).exists():
            sync_all([self._file])
