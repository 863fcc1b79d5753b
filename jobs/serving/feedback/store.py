"""Records that outlive any kill: lines of a spool, one writer a file, rolled into Arrow shards in which each record is once.

FOLDER/
  spool-TIME-HOST-PID.jsonl    what a living writer has written since the last roll; it holds a lock on the file
  part-TIME-RANDOM.arrow       rolled: Arrow IPC, every id once among all shards
  roll.lock                    held by whoever rolls or deletes
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
    """The file that one writer appends to. What `append` has written is there for good, whoever is killed then."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        while True:
            self.path = folder / f"{SPOOL}{time.time_ns():020d}-{machine()}-{os.getpid()}.jsonl"
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self.path.exists():  # else whoever rolls saw it before it had the lock, and took it for one that was left
                break
            os.close(self._file)
        self.num_bytes = 0

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows down, a line each. Raises OSError; what was written of them then is no line, or a row that comes again."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        if self.num_bytes < 0:  # the disk was full in the middle of a line
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
        """Wait until all of it is on the disk, lest the machine lose its power."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Let others roll it."""
        os.close(self._file)


class Store:
    """All records of one kind in a folder, by a schema that has `id` and `time` (seconds since the epoch)."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema

    # --- reading

    def read(self, since: float | None = None) -> pa.Table:
        """Every record once, by time; `since`: of this time and later."""
        spooled = self._spooled()  # before the shards: what is rolled meanwhile is then found twice, and not missed
        tables = [*(self._open(path) for path in self.shards()), *([self._table(spooled)] if spooled else [])]
        found = _once(pa.concat_tables(tables)) if tables else self.schema.empty_table()
        if since is not None:
            found = found.filter(pc.greater_equal(found[TIME], since))
        return found.sort_by([(TIME, "ascending"), (ID, "ascending")])

    def find(self, columns: Sequence[str], value: str) -> Row | None:
        """The record that has this value in one of the columns."""
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
        """The shards, the oldest first."""
        return sorted(self.folder / name for name in list_afresh(self.folder) if name.startswith(SHARD))

    def num_bytes(self) -> int:
        """The bytes of shards and spools."""
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
        except (FileNotFoundError, pa.ArrowInvalid) as error:  # deleted by retention a moment ago; a bad disk
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read and is left out: %s", path, error)
            return self.schema.empty_table()
        return _fitted(table, self.schema)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        return pa.Table.from_pylist([{name: row.get(name) for name in self.schema.names} for row in rows], self.schema)

    # --- rolling and deleting

    def roll(self) -> int:
        """Make shards of all spools whose writer is gone; how many rows they have. A kill loses and doubles none."""
        if not self._spools():
            return 0
        with locked(self.folder / LOCK):
            return sum(self._roll_one(path) for path in self._spools())

    def _roll_one(self, path: Path) -> int:
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return 0
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0  # its writer lives
            table = _once(self._table(list(_rows(path))))
            for shard in self.shards():
                table = table.filter(pc.invert(pc.is_in(table[ID], value_set=self._open(shard)[ID])))
            if table.num_rows:
                self._write(table)
            path.unlink()  # only now: a roll that is cut short before is made again, and finds its rows in the shard
        return int(table.num_rows)

    def _write(self, table: pa.Table, path: Path | None = None) -> None:
        table = table.sort_by([(TIME, "ascending"), (ID, "ascending")]).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema) as writer:
            writer.write_table(table)
        newest = int(table[TIME][-1].as_py() * 1000)
        write_atomically(path or self.folder / f"{SHARD}{newest:015d}-{secrets.token_hex(4)}.arrow", sink.getvalue())

    def delete_before(self, moment: float) -> int:
        """Delete all records that are older; how many. A living writer's spool is left to it."""
        if not self.folder.is_dir():
            return 0
        deleted = 0
        with locked(self.folder / LOCK):
            for path in self.shards():
                table = self._open(path)
                kept = table.filter(pc.greater_equal(table[TIME], moment))
                if kept.num_rows < table.num_rows:
                    deleted += table.num_rows - kept.num_rows
                    if kept.num_rows:
                        self._write(kept, path)
                    else:
                        path.unlink()
        return deleted

    def delete_beyond(self, max_bytes: int) -> int:
        """Delete the oldest shards until what is left takes no more bytes; how many records went."""
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
    """Appends to a store, and rolls what it has written when that is much, or old."""

    def __init__(self, store: Store, roll_bytes: int, roll_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.store, self.roll_bytes, self.roll_seconds, self._clock = store, roll_bytes, roll_seconds, clock
        store.folder.mkdir(parents=True, exist_ok=True)
        store.roll()  # what earlier writers have left
        self._spool: Spool | None = None

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows down; durable once this returns, but for a loss of power before `sync`. Raises OSError."""
        if rows:
            self._spool = self._spool or Spool(self.store.folder)
            self._spool.append(rows)

    def sync(self) -> None:
        """Wait until what was written is on the disk; then roll, if it is time."""
        if self._spool is None:
            return
        self._spool.sync()
        if self._spool.num_bytes >= self.roll_bytes or self._clock() - self._spool.began >= self.roll_seconds:
            self.roll()

    def roll(self) -> None:
        """Make a shard of what was written."""
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


def _once(table: pa.Table) -> pa.Table:
    """The first row of each id."""
    if table.num_rows == 0:
        return table
    numbered = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    first = numbered.group_by(ID, use_threads=False).aggregate([("_row", "min")])["_row_min"]
    return table if len(first) == table.num_rows else table.take(first)


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in this schema: columns that an older version did not have are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
