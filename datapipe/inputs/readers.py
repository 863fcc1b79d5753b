"""Read the documents of a unit one by one, in bounded memory; a record that cannot be read becomes a rejection."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import parquet

from ropewalk.cluster.errors import DataError, StorageError
from ropewalk.datapipe.inputs.files import InputFile, Unit
from ropewalk.datapipe.inputs.lines import TOO_LONG, split_lines
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.inputs.streams import CHUNKS, MIB, DamagedStreamError, HashedReader, open_file, split_url
from ropewalk.datapipe.inputs.web import read_pages
from ropewalk.datapipe.text.document import Document, Rejection

ROWS_A_BATCH = 256
BOM = b"\xef\xbb\xbf"
MISSING, NOT_UTF8 = object(), object()  # markers for a text that is absent or does not decode


@dataclass(kw_only=True)
class ReadStats:
    """Counts, checksums and damage from reading a unit."""

    lines: int = 0  # of the unit; line numbers of the file's next unit continue from there
    checksums: list[str] = field(default_factory=list)  # of each file, or of the unit's piece of the file
    damage: dict[int, str] = field(default_factory=dict)  # file index → reason why it could not be read to its end


def read_unit(unit: Unit, rules: ReadRules, stats: ReadStats) -> Iterator[Document | Rejection]:
    """Read every record of a unit, in order. Raises DataError if a file changed since the plan was made."""
    for index, file in enumerate(unit.files):
        readers = {"parquet": _read_parquet, "text": _read_text, "warc": _read_web, "warc.gz": _read_web}
        reader = readers.get(file.kind, _read_lines)
        try:
            yield from reader(unit, index, rules, stats)
        except DamagedStreamError as error:
            stats.damage[index] = str(error)
            yield Rejection(index, 0, file.name, file.name, "damaged_file")
    if unit.damage:
        stats.damage[0] = unit.damage
        yield Rejection(0, stats.lines + 1, unit.files[0].name, unit.files[0].name, "damaged_file")


def open_input(file: InputFile) -> Any:
    """Open a file of the plan. Raises DataError if it changed, is gone, or cannot be read."""
    folder, name = split_url(file.url)
    try:
        if folder.size(name) != file.size:
            raise DataError(
                f"{file.url}: its size changed from {file.size} to {folder.size(name)} bytes while it was read; start over"
            )
        return open_file(folder, name)
    except FileNotFoundError:
        raise DataError(f"{file.url}: the file existed when the job began and is gone; restore it or start over") from None
    except PermissionError:
        raise DataError(f"{file.url}: cannot be read: permission denied; check its permissions or the credentials") from None


def _read_lines(unit: Unit, index: int, rules: ReadRules, stats: ReadStats) -> Iterator[Document | Rejection]:
    """Read JSON lines: plain ones that begin in the unit's byte range, or a compressed file."""
    file = unit.files[index]
    opened = unit.split_piece or file
    with open_input(opened) as stream:
        stream.seek(max(unit.start - 1, 0))
        source = HashedReader(stream, unit.start, unit.end)
        check = RecordCheck(index=index, file=file, rules=rules)
        limit = int(rules.max_line_mib * MIB)
        lines = split_lines(CHUNKS[opened.kind](source), limit, unit.start, unit.end)
        if unit.damage:
            lines = _all_but_last(lines)  # the last line is incomplete
        try:
            for line in lines:
                stats.lines += 1
                if line is TOO_LONG:
                    yield check.reject(stats.lines, "line_too_long")
                    continue
                record = line.removeprefix(BOM) if stats.lines == 1 and unit.start == 0 and unit.piece == 0 else line
                if record and not record.isspace():
                    yield _parse(record, stats.lines, check)
        finally:
            stats.checksums.append(source.drain())


def _all_but_last(lines: Iterator[bytes]) -> Iterator[bytes]:
    held = next(lines, None)
    for line in lines:
        if held is not None:
            yield held
        held = line


def parse_object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the object of a JSON line, or None and the rejection reason."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            line.decode()
        except UnicodeDecodeError:
            return None, "invalid_utf8"
        return None, "invalid_json"
    return (record, "") if isinstance(record, dict) else (None, "not_an_object")


def _parse(line: bytes, number: int, check: "RecordCheck") -> Document | Rejection:
    record, reason = parse_object(line)
    if record is None:
        return check.reject(number, reason)
    rules = check.rules
    return check.judge(number, record.get(rules.id_key), record.get(rules.source_key), record.get(rules.text_key, MISSING))


@dataclass(frozen=True, kw_only=True)
class RecordCheck:
    """Turns records of one file into documents or rejections."""

    index: int  # of the file in the unit
    file: InputFile
    rules: ReadRules

    def reject(self, line: int, reason: str, id_: str | None = None, source: str = "") -> Rejection:
        """Return the rejection of a record that is not a document or breaks a rule."""
        return Rejection(self.index, line, id_, source or self.file.name, reason)

    def judge(self, line: int, raw_id: Any, raw_source: Any, text: Any) -> Document | Rejection:
        """Turn a record into a document or a rejection. Ids that are neither strings nor numbers are ignored."""
        id_ = str(raw_id) if isinstance(raw_id, (str, int, float)) and not isinstance(raw_id, bool) and raw_id != "" else None
        source = raw_source if isinstance(raw_source, str) and raw_source else self.file.name
        reason = self._reason_against(text)
        return self.reject(line, reason, id_, source) if reason else Document(self.index, line, id_, source, text)

    def _reason_against(self, text: Any) -> str | None:
        if text is MISSING:
            return "missing_text"
        if text is None:
            return "null_text"
        if text is NOT_UTF8:
            return "invalid_utf8"
        if not isinstance(text, str):
            return "text_not_string"
        if not text or text.isspace():
            return "empty"
        if len(text) > self.rules.max_line_mib * MIB:
            return "text_too_large"  # only a cell of a parquet file: longer lines were rejected before parsing
        if len(text) < self.rules.min_chars:
            return "too_short"
        longest = self.rules.max_chars
        return "too_long" if longest is not None and len(text) > longest else None


def _read_text(unit: Unit, index: int, rules: ReadRules, stats: ReadStats) -> Iterator[Document | Rejection]:
    """Read a text file as one document whose id is the file name."""
    file = unit.files[index]
    check = RecordCheck(index=index, file=file, rules=rules)
    limit = int(rules.max_line_mib * MIB)
    with open_input(file) as stream:
        source = HashedReader(stream)
        raw = b""
        while len(raw) <= limit and (chunk := source.read()):
            raw += chunk
        stats.checksums.append(source.drain())
    if len(raw) > limit:
        yield check.reject(1, "file_too_large", file.name)
        return
    if not raw:
        return  # an empty file is not a document
    try:
        text = raw.removeprefix(BOM).decode()
    except UnicodeDecodeError:
        yield check.reject(1, "invalid_utf8", file.name)
        return
    yield check.judge(1, file.name, file.name, text)


def _read_web(unit: Unit, index: int, rules: ReadRules, stats: ReadStats) -> Iterator[Document | Rejection]:
    """Read the pages of a web archive; each record counts as a line, the host is the source."""
    file = unit.files[index]
    check = RecordCheck(index=index, file=file, rules=rules)
    with open_input(file) as stream:
        source = HashedReader(stream)
        chunks = CHUNKS["gzip" if file.kind == "warc.gz" else "lines"](source)
        try:
            for id_, host, text, reason in read_pages(chunks, int(rules.max_line_mib * MIB), rules.main_content):
                stats.lines += 1
                if reason:
                    yield check.reject(stats.lines, reason, id_, host)
                else:
                    yield check.judge(stats.lines, id_, host, text)
        finally:
            stats.checksums.append(source.drain())


def _read_parquet(unit: Unit, index: int, rules: ReadRules, stats: ReadStats) -> Iterator[Document | Rejection]:
    """Read the unit's row groups of a parquet file; each row counts as a line."""
    file = unit.files[index]
    first, last = file.size * unit.piece // unit.pieces, file.size * (unit.piece + 1) // unit.pieces
    with open_input(file) as stream:
        stream.seek(first)
        stats.checksums.append(HashedReader(stream, first, last).drain())
    if file.size == 0:
        return
    check = RecordCheck(index=index, file=file, rules=rules)
    with open_input(file) as stream:
        try:
            table = parquet.ParquetFile(stream)
            names = table.schema_arrow.names
            if rules.text_key not in names:
                raise DataError(f"{file.url}: no column {rules.text_key!r}; set text_key to one of {', '.join(names)}")
            keys = (rules.id_key, rules.source_key, rules.text_key)
            wanted = [k for k in keys if k in names]
            groups = list(range(unit.start, unit.end if unit.end is not None else table.num_row_groups))
            for batch in table.iter_batches(batch_size=ROWS_A_BATCH, row_groups=groups, columns=wanted, use_threads=False):
                columns = {name: _plain_column(batch.column(name)) for name in wanted}
                for row in range(batch.num_rows):
                    stats.lines += 1
                    yield check.judge(stats.lines, *(columns[k][row] if k in columns else None for k in keys))
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, StorageError) or getattr(error, "errno", None):
                raise
            raise DamagedStreamError(f"parquet: {str(error).splitlines()[0]}") from None


def _plain_column(column: Any) -> list[Any]:
    """Return a column as Python values; texts are decoded one by one, so that an invalid byte rejects only its row."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return list(column.to_pylist())
    return [_decode(value) for value in column.to_pylist()]


def _decode(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return NOT_UTF8
