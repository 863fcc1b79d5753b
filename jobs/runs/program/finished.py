"""Finished work of a run, written down one by one as it is done, so that whatever kills the run costs only what was under way."""

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
    """Records by key, of all ranks and attempts of a run: `ledger/NAME/*.jsonl`, one file a writer.

    A record is there for good once `add` returns, whoever is killed then. Only the newest group of ranks can add.
    """

    def __init__(self, context: JobContext, name: str) -> None:
        """Open the ledger and read what is in it; each rank opens it when all of an older group's writers are gone or fenced."""
        self._context = context
        self.folder = context.run.path / "ledger" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own = self.folder / f"attempt-{context.attempt:04d}-group-{context.group:06d}-rank-{context.rank:05d}.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what other ranks have written by now. Of two records of one key the older counts."""
        for name in sorted(list_afresh(self.folder)):
            for line in read_lines(self.folder / name):
                if KEY in line:
                    self._records.setdefault(str(line[KEY]), line)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key; None if it is not finished."""
        return self._records.get(key)

    @property
    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """All records by key."""
        return self._records

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Write down what is finished; a key that is there already is left as it is. Raises StaleAttemptError."""
        if key in self._records:
            return
        self._context.fence.check()
        line = {KEY: key, **record}
        append_line(self._own, line)
        self._records[key] = line

    def sync(self) -> None:
        """Wait until this rank's records are on the disk."""
        if Path(self._own).exists():
            sync_all([self._own])
