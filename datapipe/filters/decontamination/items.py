"""Evaluation items from files: what of a record is looked for, and what the item is called."""

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
from ropewalk.datapipe.inputs.streams import (
    MIB,
    DamagedStreamError,
    HashedReader,
    gzip_chunks,
    open_file,
    place_of,
    plain_chunks,
    zstd_chunks,
)
from ropewalk.datapipe.manifest import checksum_of_file

LABELS = {"id", "source", "url", "label", "split", "category", "subject", "type"}  # keys that are no part of a question
MOST_MIB = 64  # of a line


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """The texts of one record, and FILE:NUMBER from 1."""

    file: str
    number: int
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the item is called in a report."""
        return f"{self.file}:{self.number}"


def evaluation_files(patterns: tuple[str, ...]) -> list[InputFile]:
    """The files that the patterns name, by path. Raises DataError for a pattern without any, or a file that is not read."""
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        files = list(expand(pattern))
        if not files:
            raise DataError(f"decontaminate.against {pattern!r}: matches no file; check the path")
        found |= {file.url: file for file in files}
    for file in found.values():
        if not _reader(file):
            raise DataError(
                f"decontaminate.against: {file.url!r} has an ending that is not read; give .jsonl[.gz|.zst], .json, .csv, .tsv,"
                " .parquet or .txt"
            )
    return [found[url] for url in sorted(found)]


def checksums(patterns: tuple[str, ...]) -> dict[str, str]:
    """The checksum of each evaluation file, which is a part of what a data set is made from. Raises DataError."""
    return {file.url: checksum_of_file(*place_of(file.url)) for file in evaluation_files(patterns)}


def check_items(patterns: tuple[str, ...]) -> None:
    """Refuse, before any work, evaluation files that cannot be read or have no item. Raises DataError."""
    if not list(read_items(evaluation_files(patterns))):
        raise DataError(
            f"decontaminate.against: {', '.join(patterns)}: no item; give files with questions, or unset decontaminate"
        )


def read_items(files: list[InputFile]) -> Iterator[EvaluationItem]:
    """All items of these files. Raises DataError, with file and line, for what cannot be read: a gap would go unnoticed."""
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


def _whole(file: InputFile) -> bytes:
    place, name = place_of(file.url)
    return place.read(name)


def _read_lines(file: InputFile) -> Iterator[Any]:
    chunks = {"lines": plain_chunks, "gzip": gzip_chunks, "zstd": zstd_chunks}[kind_of(file.url) or "lines"]
    place, name = place_of(file.url)
    with open_file(place, name) as stream:
        for number, line in enumerate(split_lines(chunks(HashedReader(stream)), MOST_MIB * MIB), 1):
            if not line.strip():
                yield None
                continue
            try:
                yield orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number}: not JSON: {error}") from None


def _read_json(file: InputFile) -> Iterator[Any]:
    found = json.loads(_whole(file))
    while isinstance(found, dict) and len(lists := [v for v in found.values() if isinstance(v, list)]) == 1:
        found = lists[0]  # {"data": [...]} as many sets are published
    yield from found if isinstance(found, list) else [found]


def _read_table(file: InputFile) -> Iterator[Any]:
    delimiter = "\t" if file.url.lower().endswith(".tsv") else ","
    yield from csv.DictReader(io.StringIO(_whole(file).decode("utf-8-sig")), delimiter=delimiter)


def _read_parquet(file: InputFile) -> Iterator[Any]:
    place, name = place_of(file.url)
    with open_file(place, name) as stream:
        for batch in parquet.ParquetFile(stream).iter_batches():
            yield from batch.to_pylist()


def _read_text(file: InputFile) -> Iterator[Any]:
    yield from _whole(file).decode("utf-8-sig").splitlines()


def _strings(value: Any, key: str = "") -> Iterator[str]:
    """Every string in a record that may be a part of a question or an answer, in order."""
    if isinstance(value, str):
        if key not in LABELS and value.strip():
            yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _strings(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, key)
