"""Read the records of preference data: JSON lines, plain or compressed, and parquet."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from pyarrow import parquet

from datapipe.config import MIB
from datapipe.inputs.files import InputFile, list_inputs
from datapipe.inputs.lines import TOO_LONG, split_lines
from datapipe.inputs.readers import BOM, CHUNKS
from datapipe.inputs.streams import DamagedStreamError, HashedReader, open_file, place_of

MAX_LINE_BYTES = 64 * MIB


class Record(NamedTuple):
    """A line of a file: an object, or the reason why it is none."""

    file: str
    line: int  # from 1; a row of a parquet file counts as one
    values: dict[str, Any] | None
    reason: str = ""


def data_files(pattern: str) -> list[InputFile]:
    """The files of a path, a directory or a glob. Raises DataError where there are none."""
    return list_inputs([pattern])


def read_records(files: list[InputFile]) -> Iterator[Record]:
    """Every record, in the order of files and lines; damage to a file is a record too, and ends that file."""
    for file in files:
        place, name = place_of(file.url)
        with open_file(place, name) as stream:
            try:
                yield from _rows(file, stream) if file.kind == "parquet" else _lines(file, stream)
            except DamagedStreamError:
                yield Record(file.name, 0, None, "damaged_file")


def _lines(file: InputFile, stream: Any) -> Iterator[Record]:
    chunks = CHUNKS[file.kind if file.kind in CHUNKS else "lines"](HashedReader(stream))
    for number, line in enumerate(split_lines(chunks, MAX_LINE_BYTES), 1):
        if line is TOO_LONG:
            yield Record(file.name, number, None, "line_too_long")
            continue
        text = line.removeprefix(BOM) if number == 1 else line
        if text and not text.isspace():
            yield _parsed(file.name, number, text)


def _parsed(file: str, number: int, text: bytes) -> Record:
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError:
        return Record(file, number, None, "invalid_json")
    return Record(file, number, values) if isinstance(values, dict) else Record(file, number, None, "not_an_object")


def _rows(file: InputFile, stream: Any) -> Iterator[Record]:
    number = 0
    for batch in parquet.ParquetFile(stream).iter_batches(batch_size=256, use_threads=False):
        for values in batch.to_pylist():
            number += 1
            yield Record(file.name, number, values)
