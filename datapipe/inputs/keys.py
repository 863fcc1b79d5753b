"""Keys of the first records of input files, to find a wrong `text_key` before all is read."""

from collections.abc import Sequence
from itertools import islice

import pyarrow as pa
from pyarrow import parquet

from ropewalk.datapipe.inputs.files import InputFile
from ropewalk.datapipe.inputs.lines import TOO_LONG, split_lines
from ropewalk.datapipe.inputs.readers import BOM, open_input, parse_object
from ropewalk.datapipe.inputs.streams import CHUNKS, MIB, DamagedStreamError, HashedReader

MAX_LINE_MIB = 32
CHECKED_FILES, CHECKED_RECORDS = 3, 100  # records of each file


def first_keys(file: InputFile, records: int = 1) -> set[str]:
    """Return the keys of the first records of a .jsonl or .parquet file, without reading further; empty if it is unreadable."""
    try:
        with open_input(file) as stream:
            if file.kind == "parquet":
                return {*parquet.ParquetFile(stream).schema_arrow.names}
            lines = split_lines(CHUNKS[file.kind](HashedReader(stream, 0, None)), MAX_LINE_MIB * MIB)
            first = islice((line for line in lines if line is not TOO_LONG and line and not line.isspace()), records)
            return {key for line in first for key in parse_object(line.removeprefix(BOM))[0] or {}}
    except (pa.ArrowException, DamagedStreamError, OSError):
        return set()  # the run records the damage


def missing_key(files: Sequence[InputFile], text_key: str) -> str:
    """Return a message with the keys of the first records of the first files if none has `text_key`, else an empty string."""
    checked = files[:CHECKED_FILES]
    if not all(file.kind in {*CHUNKS, "parquet"} for file in checked):
        return ""
    keys = {key for file in checked for key in first_keys(file, CHECKED_RECORDS)}
    if not keys or text_key in keys:
        return ""
    return f"text_key: records of {checked[0].url} have no key {text_key!r}; set text_key to one of {', '.join(sorted(keys))}"
