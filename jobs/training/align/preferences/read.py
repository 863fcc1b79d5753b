"""Records of preference data and prompts with their positions, from JSON lines, plain or compressed, and parquet."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson
import xxhash

from ropewalk.datapipe.chat.records import UnitNotes
from ropewalk.datapipe.chat.records import read_records as read_unit
from ropewalk.datapipe.inputs.files import InputFile, Unit, list_inputs


class Record(NamedTuple):
    """A line of a file: an object, or the reason of a rejection."""

    file: str
    line: int  # from 1; a row of a parquet file counts as one
    values: dict[str, Any] | None
    reason: str = ""


def data_files(pattern: str) -> list[InputFile]:
    """List the files of a path, a directory or a glob. Raises DataError if there are none."""
    return list_inputs([pattern])


def read_records(files: Sequence[InputFile], checksums: dict[str, str] | None = None) -> Iterator[Record]:
    """Yield every record in the order of files and lines. Damage yields a record too, and ends its file.

    The checksum of each file is stored in `checksums`, by its URL, once it is read.
    """
    for number, file in enumerate(files):
        notes = UnitNotes()
        for line, values, reason in read_unit(Unit(index=number, files=(file,)), notes):
            yield Record(file.name, line, values, reason)
        if checksums is not None:
            checksums[file.url] = notes.checksum


def is_held_out(prompt: Any, fraction: float) -> bool:
    """Return True if a prompt is in the held-out fraction, by a hash: all records of a prompt are held out together."""
    return xxhash.xxh3_64_intdigest(orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)) < fraction * 2.0**64
