"""Read whole records of a unit: JSON objects or parquet rows; records that cannot be read have a rejection reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ropewalk.cluster.errors import DataError, StorageError
from ropewalk.datapipe.inputs.files import InputFile, Unit
from ropewalk.datapipe.inputs.lines import TOO_LONG, split_lines
from ropewalk.datapipe.inputs.readers import BOM, ROWS_A_BATCH, open_input, parse_object
from ropewalk.datapipe.inputs.streams import CHUNKS, MIB, DamagedStreamError, HashedReader

MAX_LINE_MIB = 32

# line (from 1 at the start of the unit), and a record or the reason for its rejection
Row = tuple[int, dict[str, Any] | None, str]


@dataclass(kw_only=True)
class UnitNotes:
    """Checksum and damage from reading a unit."""

    checksum: str = ""
    damage: str | None = None  # reason why the file could not be read to its end


def read_records(unit: Unit, notes: UnitNotes) -> Iterator[Row]:
    """Read every record of a unit, in order. Raises DataError for a text file, and for a file that changed."""
    file = unit.files[0]
    if file.kind == "text":
        raise DataError(f"{file.url}: is plain text, not conversations; use .jsonl, .jsonl.gz, .jsonl.zst or .parquet")
    try:
        yield from _parquet(unit, file, notes) if file.kind == "parquet" else _lines(unit, file, notes)
    except DamagedStreamError as error:
        notes.damage = str(error)
        yield 0, None, "damaged_file"


def _lines(unit: Unit, file: InputFile, notes: UnitNotes) -> Iterator[Row]:
    number = 0
    with open_input(file) as stream:
        stream.seek(max(unit.start - 1, 0))
        source = HashedReader(stream, unit.start, unit.end)
        try:
            for line in split_lines(CHUNKS[file.kind](source), MAX_LINE_MIB * MIB, unit.start, unit.end):
                number += 1
                if line is TOO_LONG:
                    yield number, None, "line_too_long"
                elif line and not line.isspace():
                    yield (number, *parse_object(line.removeprefix(BOM) if number == 1 and unit.start == 0 else line))
        finally:
            notes.checksum = source.drain()


def _parquet(unit: Unit, file: InputFile, notes: UnitNotes) -> Iterator[Row]:
    first, last = file.size * unit.piece // unit.pieces, file.size * (unit.piece + 1) // unit.pieces
    with open_input(file) as stream:
        stream.seek(first)
        notes.checksum = HashedReader(stream, first, last).drain()
    number = 0
    with open_input(file) as stream:
        try:
            table = parquet.ParquetFile(stream)
            groups = list(range(unit.start, unit.end if unit.end is not None else table.num_row_groups))
            for batch in table.iter_batches(batch_size=ROWS_A_BATCH, row_groups=groups, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in row.items() if value is not None}, ""
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, StorageError) or getattr(error, "errno", None):
                raise
            raise DamagedStreamError(f"parquet: {str(error).splitlines()[0]}") from None
