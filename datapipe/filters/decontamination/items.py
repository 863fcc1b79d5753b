"""Read evaluation items from files: the texts of each record, and a name for reports."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from pyarrow import parquet

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.inputs.files import InputFile, expand, kind_of
from ropewalk.datapipe.inputs.lines import split_lines
from ropewalk.datapipe.inputs.streams import CHUNKS, MIB, DamagedStreamError, HashedReader, open_file, split_url
from ropewalk.datapipe.manifest import checksum_of_file

LABELS = {"id", "source", "url", "label", "split", "category", "subject", "type"}  # keys whose strings are not part of a question
MAX_LINE_MIB = 64


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """The texts of one record; `number` counts the records of the file from 1."""

    file: str
    number: int
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}:{self.number}"


def evaluation_files(patterns: tuple[str, ...]) -> list[InputFile]:
    """List the files of the patterns, by path. Raises DataError for a pattern without files and for an unsupported file."""
    by_url: dict[str, InputFile] = {}
    for pattern in patterns:
        files = list(expand(pattern))
        if not files:
            raise DataError(f"decontaminate.against {pattern!r}: matches no file; check the path")
        by_url |= {file.url: file for file in files}
    for file in by_url.values():
        if not _reader(file):
            raise DataError(
                f"decontaminate.against: {file.url!r} has an unsupported ending; use .jsonl[.gz|.zst], .json, .csv, .tsv,"
                " .parquet or .txt"
            )
    return [by_url[url] for url in sorted(by_url)]


def checksums(patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the checksum of each evaluation file, which becomes part of the data set's plan. Raises DataError."""
    return {file.url: checksum_of_file(*split_url(file.url)) for file in evaluation_files(patterns)}


def check_items(patterns: tuple[str, ...]) -> None:
    """Check, before any work, that the evaluation files can be read and have items. Raises DataError."""
    if not list(read_items(evaluation_files(patterns))):
        raise DataError(
            f"decontaminate.against: {', '.join(patterns)}: no items; use files with questions, or unset decontaminate"
        )


def read_items(files: list[InputFile]) -> Iterator[EvaluationItem]:
    """Read all items of these files. Raises DataError, with file and line, for a record that cannot be read."""
    for file in files:
        short = file.url.rpartition("/")[2]
        try:
            for number, record in enumerate(_reader(file)(file), 1):
                texts = tuple(_strings(record))
                if texts:
                    yield EvaluationItem(file=short, number=number, texts=texts)
        except (ValueError, DamagedStreamError, csv.Error, OSError) as error:
            raise DataError(f"decontaminate.against: {file.url}: {error}; correct the file or leave it out") from None


def _reader(file: InputFile) -> Any:
    lower = file.url.lower()
    if lower.endswith(".json"):
        return _read_json
    if lower.endswith((".csv", ".tsv")):
        return _read_table
    return {"lines": _read_lines, "gzip": _read_lines, "zstd": _read_lines, "parquet": _read_parquet, "text": _read_text}.get(
        kind_of(lower) or ""
    )


def _read_bytes(file: InputFile) -> bytes:
    folder, name = split_url(file.url)
    return folder.read(name)


def _read_lines(file: InputFile) -> Iterator[Any]:
    chunks = CHUNKS[kind_of(file.url) or "lines"]
    folder, name = split_url(file.url)
    with open_file(folder, name) as stream:
        for number, line in enumerate(split_lines(chunks(HashedReader(stream)), MAX_LINE_MIB * MIB), 1):
            if not line.strip():
                yield None
                continue
            try:
                yield orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number}: not JSON: {error}") from None


def _read_json(file: InputFile) -> Iterator[Any]:
    value = json.loads(_read_bytes(file))
    while isinstance(value, dict) and len(lists := [v for v in value.values() if isinstance(v, list)]) == 1:
        value = lists[0]  # many sets are published as {"data": [...]}
    yield from value if isinstance(value, list) else [value]


def _read_table(file: InputFile) -> Iterator[Any]:
    delimiter = "\t" if file.url.lower().endswith(".tsv") else ","
    yield from csv.DictReader(io.StringIO(_read_bytes(file).decode("utf-8-sig")), delimiter=delimiter)


def _read_parquet(file: InputFile) -> Iterator[Any]:
    folder, name = split_url(file.url)
    with open_file(folder, name) as stream:
        for batch in parquet.ParquetFile(stream).iter_batches():
            yield from batch.to_pylist()


def _read_text(file: InputFile) -> Iterator[Any]:
    yield from _read_bytes(file).decode("utf-8-sig").splitlines()


def _strings(value: Any, key: str = "") -> Iterator[str]:
    """Yield, in order, every string of a record that may be part of a question or an answer."""
    if isinstance(value, str):
        if key not in LABELS and value.strip():
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _strings(member, str(name))
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member, key)
