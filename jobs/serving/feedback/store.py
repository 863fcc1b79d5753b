"""Crash-safe record stores: append-only spools, one writer per file, rolled into deduplicated Arrow shards.

FOLDER/
  spool-TIME-HOST-PID.jsonl    records since the last roll; a running writer holds a lock on its file
  part-TIME-RANDOM.arrow       rolled records as Arrow IPC; each id occurs once among all shards
  roll.lock                    held while rolling or deleting
"""

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ropewalk.cluster.fresh_reads import list_afresh, read_afresh
from ropewalk.cluster.run.files import locked, machine, parse_lines, write_atomically

log = logging.getLogger(__name__)

SPOOL, SHARD, LOCK = "spool-", "part-", "roll.lock"
ID, TIME = "id", "time"
DAY_SECONDS = 86_400.0
Row = dict[str, Any]


class Spool:
    """Append-only file of one writer. Appended rows survive a crash of any process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        while True:
            self.path = folder / f"{SPOOL}{time.time_ns():020d}-{machine()}-{os.getpid()}.jsonl"
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self.path.exists():  # else a roll found the file before it was locked, and removed it as abandoned
                break
            os.close(self._file)
        self.num_bytes = 0

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows, one line each. Raises OSError; a partly written row is then ignored or written again."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        if self.num_bytes < 0:  # the last write stopped in the middle of a line
            lines, self.num_bytes = b"\n" + lines, 0
        while lines:
            try:
                written = os.write(self._file, lines)
            except OSError:
                self.num_bytes = -1
                raise
            self.num_bytes += written
            lines = lines[written:]

    def sync(self) -> None:
        """Wait until the data is on disk, so that it survives a power failure."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Release the lock, so that the file can be rolled."""
        os.close(self._file)


class Store:
    """All records of one kind in a folder; the schema has `id` and `time` (seconds since the epoch)."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema

    # --- reading

    def read(self, since: float | None = None) -> pa.Table:
        """Return each record once, by time; with `since` only those of this time and later."""
        spooled = self._spooled()  # before the shards: a concurrent roll then causes duplicates instead of gaps
        tables = [*(self._open(path) for path in self.shards()), *([self._table(spooled)] if spooled else [])]
        table = _deduplicate(pa.concat_tables(tables)) if tables else self.schema.empty_table()
        if since is not None:
            table = table.filter(pc.greater_equal(table[TIME], since))
        return table.sort_by([(TIME, "ascending"), (ID, "ascending")])

    def find(self, columns: Sequence[str], value: str) -> Row | None:
        """Return the record with this value in one of the columns, or None."""
        for row in self._spooled():
            if value in (row.get(column) for column in columns):
                return self._table([row]).to_pylist()[0]  # type: ignore[no-any-return]
        for path in reversed(self.shards()):
            table = self._open(path)
            for column in columns:
                at = pc.index(table[column], value).as_py()
                if at >= 0:
                    return table.slice(at, 1).to_pylist()[0]  # type: ignore[no-any-return]
        return None

    def shards(self) -> list[Path]:
        """Return the paths of the shards, oldest first."""
        return sorted(self.folder / name for name in list_afresh(self.folder) if name.startswith(SHARD))

    def num_bytes(self) -> int:
        total = 0
        for name in list_afresh(self.folder):
            with suppress(FileNotFoundError):
                total += (self.folder / name).stat().st_size
        return total

    def _spools(self) -> list[Path]:
        return sorted(self.folder / name for name in list_afresh(self.folder) if name.startswith(SPOOL))

    def _spooled(self) -> list[Row]:
        return [row for path in self._spools() for row in _rows(path)]

    def _open(self, path: Path) -> pa.Table:
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (FileNotFoundError, pa.ArrowInvalid) as error:  # just deleted by retention, or damaged
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read and is skipped: %s", path, error)
            return self.schema.empty_table()
        return _conform(table, self.schema)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        return pa.Table.from_pylist([{name: row.get(name) for name in self.schema.names} for row in rows], self.schema)

    # --- rolling and deleting

    def roll(self) -> int:
        """Turn the spools of dead writers into shards; return the number of rows. A crash neither loses nor duplicates rows."""
        if not self._spools():
            return 0
        with locked(self.folder / LOCK):
            return sum(self._roll_spool(path) for path in self._spools())

    def _roll_spool(self, path: Path) -> int:
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return 0
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0  # its writer is alive
            table = _deduplicate(self._table(list(_rows(path))))
            for shard in self.shards():
                table = table.filter(pc.invert(pc.is_in(table[ID], value_set=self._open(shard)[ID])))
            if table.num_rows:
                self._write(table)
            path.unlink()  # last: an interrupted roll is repeated, and finds its rows in the shard
        return int(table.num_rows)

    def _write(self, table: pa.Table, path: Path | None = None) -> None:
        table = table.sort_by([(TIME, "ascending"), (ID, "ascending")]).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema) as writer:
            writer.write_table(table)
        newest = int(table[TIME][-1].as_py() * 1000)
        write_atomically(path or self.folder / f"{SHARD}{newest:015d}-{secrets.token_hex(4)}.arrow", sink.getvalue())

    def delete_before(self, moment: float) -> int:
        """Delete all records older than `moment` and return their number. Spools of running writers are not touched."""
        if not self.folder.is_dir():
            return 0
        deleted = 0
        with locked(self.folder / LOCK):
            for path in self.shards():
                table = self._open(path)
                remaining = table.filter(pc.greater_equal(table[TIME], moment))
                if remaining.num_rows < table.num_rows:
                    deleted += table.num_rows - remaining.num_rows
                    if remaining.num_rows:
                        self._write(remaining, path)
                    else:
                        path.unlink()
        return deleted

    def delete_beyond(self, max_bytes: int) -> int:
        """Delete the oldest shards until at most `max_bytes` are left; return the number of deleted records."""
        deleted = 0
        if self.num_bytes() <= max_bytes:
            return 0
        with locked(self.folder / LOCK):
            for path in self.shards():
                if self.num_bytes() <= max_bytes:
                    break
                deleted += self._open(path).num_rows
                path.unlink()
        return deleted


class Writer:
    """Appends to a store, and rolls its spool once it is large or old enough."""

    def __init__(self, store: Store, roll_bytes: int, roll_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.store, self.roll_bytes, self.roll_seconds, self._clock = store, roll_bytes, roll_seconds, clock
        store.folder.mkdir(parents=True, exist_ok=True)
        store.roll()  # spools of earlier writers
        self._spool: Spool | None = None

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows. They survive a crash once this returns, and a power failure after `sync`. Raises OSError."""
        if rows:
            self._spool = self._spool or Spool(self.store.folder)
            self._spool.append(rows)

    def sync(self) -> None:
        """Wait until appended rows are on disk; roll if due."""
        if self._spool is None:
            return
        self._spool.sync()
        if self._spool.num_bytes >= self.roll_bytes or self._clock() - self._spool.began >= self.roll_seconds:
            self.roll()

    def roll(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None
            self.store.roll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.roll()


def _rows(path: Path) -> Iterator[Row]:
    for row in parse_lines(read_afresh(path))[0]:
        if row.get(ID) and isinstance(row.get(TIME), int | float):
            yield row


def _deduplicate(table: pa.Table) -> pa.Table:
    """Keep the first row of each id."""
    if table.num_rows == 0:
        return table
    numbered = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    first = numbered.group_by(ID, use_threads=False).aggregate([("_row", "min")])["_row_min"]
    return table if len(first) == table.num_rows else table.take(first)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert a table to the schema; columns missing in older versions become null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
