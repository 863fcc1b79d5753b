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

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.files import locked, machine, parse_lines, write_atomically

log = logging.getLogger(__name__)

SPOOL, SHARD, LOCK = "spool-", "part-", "roll.lock"
ID, TIME = "id", "time"
DAY_SECONDS = 86_400.0
BATCH_ROWS = 1000
REPEATED_SECONDS = 3600.0  # a record that is handed over twice can get a time of its own, at most so much later
Row = dict[str, Any]


class Spool:
    """Append-only file of one writer. Appended rows survive a crash of any process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        while True:
            self.path = folder / f"{SPOOL}{time.time_ns():020d}-{machine()}-{os.getpid()}.jsonl"
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self.path.stat()):
                    break  # else a roll saw the file before it was locked, and removed it as abandoned
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
        table = pa.concat_tables([self.schema.empty_table(), *self.tables(since)])
        return table.sort_by([(TIME, "ascending"), (ID, "ascending")])

    def rows(
        self, since: float | None = None, columns: Sequence[str] | None = None, *, newest_first: bool = False
    ) -> Iterator[Row]:
        """Yield the records of `tables`, or only some columns, without holding more than a shard in memory."""
        for table in self.tables(since, newest_first=newest_first):
            for batch in table.select(columns or self.schema.names).to_batches(BATCH_ROWS):
                yield from batch.to_pylist()

    def tables(self, since: float | None = None, *, newest_first: bool = False) -> Iterator[pa.Table]:
        """Yield a table of each shard and one of the spools, with each record once, by time within a table.

        With `since` only records of this time and later; shards that end before are not read. Oldest shards come first.
        """
        rows = _distinct([row for path in self.spools() for row in _rows(_read(path))])
        spooled = self._table(rows)  # before the shards: a concurrent roll then leaves no gap
        paths = [*(path for path in self.shards() if since is None or newest_time(path) >= since), None]
        for path in reversed(paths) if newest_first else paths:
            table = self._open(path) if path else spooled
            if path and _may_share_ids(path, spooled):
                table = table.filter(pc.invert(pc.is_in(table[ID], value_set=spooled[ID])))
            yield table if since is None else table.filter(pc.greater_equal(table[TIME], since))

    def find(self, columns: Sequence[str], value: str) -> Row | None:
        """Return the record with this value in one of the columns, or None."""
        needle = orjson.dumps(value)
        for raw in map(_read, self.spools()):
            lines = raw.split(b"\n")[:-1] if needle in raw else []
            for row in _rows(b"".join(line + b"\n" for line in lines if needle in line)):  # parsing all would take long
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

    def spools(self) -> list[Path]:
        """Return the paths of the spools, oldest first."""
        return sorted(self.folder / name for name in list_afresh(self.folder) if name.startswith(SPOOL))

    def _open(self, path: Path) -> pa.Table:
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (FileNotFoundError, pa.ArrowInvalid) as error:  # just deleted by retention, or damaged
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read and is skipped: %s", path, error)
            return self.schema.empty_table()
        return table if table.schema.equals(self.schema) else _conform(table, self.schema)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        table = pa.Table.from_pylist([{name: row.get(name) for name in self.schema.names} for row in rows], self.schema)
        return table.sort_by([(TIME, "ascending"), (ID, "ascending")])

    # --- rolling and deleting

    def roll(self) -> int:
        """Turn the spools of dead writers into shards; return the number of rows. A crash neither loses nor duplicates rows."""
        if not self.spools():
            return 0
        with locked(self.folder / LOCK):
            return sum(self._roll_spool(path) for path in self.spools())

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
            table = self._table(_distinct(list(_rows(stream.read()))))
            for shard in self.shards():
                if _may_share_ids(shard, table):
                    table = table.filter(pc.invert(pc.is_in(table[ID], value_set=self._open(shard)[ID])))
            if table.num_rows:
                self._write(table)
            path.unlink()  # last: an interrupted roll is repeated, and finds its rows in the shard
        return int(table.num_rows)

    def _write(self, table: pa.Table, path: Path | None = None) -> None:
        table = table.combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema) as writer:
            writer.write_table(table)
        newest = int(table[TIME][-1].as_py() * 1000)
        write_atomically(path or self.folder / f"{SHARD}{newest:015d}-{secrets.token_hex(4)}.arrow", sink.getvalue())

    def delete(self, doomed: Callable[[pa.Table], Any], shard: Path | None = None) -> int:
        """Delete the records that `doomed` marks, in all shards or in one, and return their number; spools are not touched."""
        if not self.folder.is_dir():
            return 0
        deleted = 0
        with locked(self.folder / LOCK):
            for path in [shard] if shard else self.shards():
                table = self._open(path)
                mask = pc.fill_null(doomed(table), False)
                num_doomed = pc.sum(mask).as_py() or 0
                if num_doomed == table.num_rows > 0:
                    path.unlink()
                elif num_doomed:
                    self._write(table.filter(pc.invert(mask)), path)
                deleted += num_doomed
        return deleted


class Writer:
    """Appends to a store, and rolls its spool once it is large or old enough."""

    def __init__(self, store: Store, roll_bytes: int, roll_seconds: float) -> None:
        self.store, self.roll_bytes, self.roll_seconds = store, roll_bytes, roll_seconds
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
        if self._spool.num_bytes >= self.roll_bytes or time.monotonic() - self._spool.began >= self.roll_seconds:
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


def _read(path: Path) -> bytes:
    """Read a listed spool; return no bytes if it was rolled meanwhile. Never creates a file: its writer would lose it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _rows(raw: bytes) -> Iterator[Row]:
    for row in parse_lines(raw)[0]:
        if row.get(ID) and isinstance(row.get(TIME), int | float):
            yield row


def _distinct(rows: list[Row]) -> list[Row]:
    """Keep the first row of each id."""
    return list({row[ID]: row for row in reversed(rows)}.values())


def _may_share_ids(shard: Path, table: pa.Table) -> bool:
    """Return False if a shard ends so long before a sorted table that no record can be in both."""
    return bool(table.num_rows) and newest_time(shard) + REPEATED_SECONDS >= table[TIME][0].as_py()


def newest_time(path: Path) -> float:
    """Return a time, in seconds since the epoch, that no record of a shard exceeds: its name holds it in milliseconds."""
    return (int(path.name.split("-")[1]) + 1) / 1000


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert a table to the schema; columns missing in older versions become null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
